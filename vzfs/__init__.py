"""VZFS: a copy-on-write FUSE overlay whose template files are shared on disk and in the page cache."""
