"""A conformance suite for file systems, written from POSIX.1-2017 and the Linux manual pages.

A case is a generator: what stands before its `yield` builds the tree, what follows acts and
judges. The same case therefore runs with its files new in the mounted tree and with its files
in a template layer below, where every act also meets the copy-up.
"""
