"""Mappings of files, mmap(2): shared and private, of several processes."""

import errno
import mmap
import os
from collections.abc import Iterator

from .data import pattern
from .frame import Scene, case, opened


@case(size=(1, 4096, 10000, 300_000))
def a_shared_mapping_reads_and_writes_the_file(t: Scene, size: int) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    wanted = bytearray(pattern(size))
    with opened("x", os.O_RDWR) as one, mmap.mmap(one, size) as memory:
        t.equal(memory[:], pattern(size), "content through the mapping")
        memory[0] = wanted[0] = 1
        memory[size - 1] = wanted[size - 1] = 2
        memory[size // 2] = wanted[size // 2] = 3
        memory.flush()
    t.content("x", bytes(wanted))


@case(size=(4096, 10000))
def read_write_and_mapping_agree_at_once(t: Scene, size: int) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    with opened("x", os.O_RDWR) as one, mmap.mmap(one, size) as memory:
        os.pwrite(one, b"written", 10)
        t.equal(memory[10:17], b"written", "mapping after pwrite")
        memory[20:26] = b"stored"
        t.equal(os.pread(one, 6, 20), b"stored", "pread after a store")
        with opened("x", os.O_RDONLY) as other:
            t.equal(os.pread(other, 6, 20), b"stored", "pread of another descriptor")


@case(size=(4096, 10000))
def a_private_mapping_never_changes_the_file(t: Scene, size: int) -> Iterator[None]:
    t.write("x", pattern(size))
    yield
    with opened("x", os.O_RDONLY) as one, mmap.mmap(one, size, access=mmap.ACCESS_COPY) as memory:
        memory[0:5] = b"STORE"
        t.equal(memory[0:5], b"STORE", "mapping")
    t.content("x", pattern(size))


@case()
def a_mapping_outlives_descriptor_and_name(t: Scene) -> Iterator[None]:
    t.write("x", pattern(9000))
    yield
    one = os.open("x", os.O_RDWR)
    memory = mmap.mmap(one, 9000)
    os.close(one)
    os.unlink("x")
    memory[8000] = 1
    t.equal(memory[:100], pattern(9000)[:100], "content")
    t.equal(memory[8000], 1, "stored byte")
    memory.close()


@case(access=(os.O_RDONLY, os.O_WRONLY))
def a_mapping_needs_the_access_it_asks_for(t: Scene, access: int) -> Iterator[None]:
    t.write("x", pattern(100))
    yield
    with opened("x", access) as one:
        t.fails(errno.EACCES, mmap.mmap, one, 100)


@case(processes=(2, 3))
def processes_share_a_mapping(t: Scene, processes: int) -> Iterator[None]:
    t.write("x", bytes(processes))
    yield
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            with opened("x", os.O_RDWR) as one, mmap.mmap(one, processes) as memory:
                memory[number] = 65 + number
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    t.content("x", bytes(range(65, 65 + processes)))
