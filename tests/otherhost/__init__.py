"""The tests on the other common kind of server: an ordinary Debian 12, run in an emulated guest."""
