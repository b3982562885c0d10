"""All areas together, and how a choice of cases is run on a bed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import (  # noqa: F401  (importing an area registers its cases)
    attributes,
    data,
    folders,
    links,
    mappings,
    opens,
    owners,
    paths,
    permissions,
    renames,
    times,
)
from .beds import Bed
from .frame import CASES, Case, Result, run


@dataclass(frozen=True)
class Limit:
    """Cases known and documented to fail; a limit that no case meets any more is an error."""

    file_system: str
    layer: str  # "" for either
    case: str  # area.name begins with this
    reason: str


def _of_passthrough(*limits: Limit) -> tuple[Limit, ...]:
    """Return what only a kernel with passthrough is limited by."""
    from vzfs import server

    return limits if server.offers_passthrough() else ()


_NO_FALLOCATE = "libfuse's binding has no fallocate"
_NO_TMPFILE = "libfuse's binding has no O_TMPFILE"
LIMITS = (
    Limit("vzfs-pyfuse3", "", "data.fallocate_does_what_its_mode_says", _NO_FALLOCATE),
    Limit("vzfs-pyfuse3", "", "owners.writing_clears_set_id_bits[allocate", _NO_FALLOCATE),
    Limit("vzfs-pyfuse3", "", "owners.writing_drops_file_capabilities[allocate", _NO_FALLOCATE),
    Limit(
        "vzfs-pyfuse3", "", "owners.writing_clears_bits_set_after_the_open[allocate", _NO_FALLOCATE
    ),
    Limit(
        "vzfs-pyfuse3",
        "",
        "owners.writing_drops_capabilities_set_after_the_open[allocate",
        _NO_FALLOCATE,
    ),
    Limit("vzfs-pyfuse3", "", "times.a_call_moves_exactly_its_times[fallocate", _NO_FALLOCATE),
    Limit("vzfs-pyfuse3", "", "times.a_call_moves_exactly_its_times[punch", _NO_FALLOCATE),
    Limit("vzfs-pyfuse3", "", "times.a_call_moves_exactly_its_times[zero", _NO_FALLOCATE),
    Limit("vzfs-pyfuse3", "", "links.a_temporary_file_gets_a_name_or_not", _NO_TMPFILE),
    Limit("vzfs-pyfuse3", "", "permissions.root_searches_and_edits", _NO_TMPFILE),
    Limit(
        "vzfs-pyfuse3", "", "permissions.folder_access_is_decided_by_one_class[tmpfile", _NO_TMPFILE
    ),
    *(
        Limit("vzfs-pyfuse3", "", f"paths.{name}[open_tmpfile", _NO_TMPFILE)
        for name in (
            "works_plainly",
            "works_plainly_for_the_owner",
            "forty_links_on_the_way_are_the_limit",
            "name_of_255_bytes_works",
            "path_of_4095_bytes_works",
            "dots_and_slashes_do_not_matter",
            "a_link_is_followed_at_the_end",
            "a_trailing_slash_demands_a_directory",
            "search_permission_of_the_own_class_is_enough",
        )
    ),
    Limit("vzfs-pyfuse3", "", "data.seek_finds_data_and_holes", "libfuse's binding has no lseek"),
    Limit("vzfs-pyfuse3", "", "attributes.unknown_flags_are_refused", "… and no ioctl"),
    *_of_passthrough(
        *(
            Limit(bed, "lower", name, why)
            for bed in ("vzfs-kernel", "vzfs-resting")
            for name, why in (
                (
                    "opens.a_reader_sees_what_a_later_writer_writes[read]",
                    "a template file open for reading is shared by the kernel until it is closed",
                ),
                (
                    "folders.a_lock_holds_over_the_first_write",
                    "the first writer of a template file somebody reads gets a file of its own",
                ),
            )
        )
    ),
)
AREAS = tuple(dict.fromkeys(c.area for c in CASES))


def run_on(kind: type[Bed], home: Path, layer: str, cases: Sequence[Case]) -> list[Result]:
    """Run cases with their files built in a layer ("upper": through the mount)."""
    bed = kind(home / "bed")
    below = bed.lower if layer == "lower" and bed.has_lower else bed.merged
    if below == bed.merged:
        bed.mount()
        between = lambda: None  # noqa: E731
    else:
        between = bed.mount
    try:
        results = run(cases, bed.name, layer, below, bed.merged, between)
    finally:
        bed.abandon()
    return [_limited(bed.name, layer, result) for result in results]


def _limited(file_system: str, layer: str, result: Result) -> Result:
    """Mark a failure that is a documented limit."""
    if result.outcome != "fail":
        return result
    for limit in LIMITS:
        if (
            limit.file_system == file_system
            and limit.layer in ("", layer)
            and f"{result.area}.{result.name}".startswith(limit.case)
        ):
            return replace(result, outcome="limit", text=limit.case)
    return result


def lifted(file_system: str, layer: str, results: Sequence[Result]) -> list[str]:
    """Return the documented limits of these areas which nothing meets any more."""
    met = {result.text for result in results if result.outcome == "limit"}
    areas = {result.area for result in results}
    return [
        limit.case
        for limit in LIMITS
        if limit.file_system == file_system
        and limit.layer in ("", layer)
        and limit.case.partition(".")[0] in areas
        and limit.case not in met
    ]
