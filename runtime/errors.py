"""The one error tree: each class is one exit code of vzctl (libvzctl ``lib/vzerror.h``).

The first line of a class's docstring is its generic message; ``code`` is the exit status. The
manual and ``--help`` list the codes from these classes, so a class nobody raises is a lie there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class VzError(Exception):
    """Something went wrong."""

    code: ClassVar[int] = 3

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        """Carry ``message`` (one line: what and why) and ``hint`` (one line: what to try)."""
        self.message = message or (type(self).__doc__ or "").splitlines()[0].rstrip(".")
        self.hint = hint
        super().__init__(self.message)


class SystemFailure(VzError):
    """A system call or a file operation failed."""

    code = 3


class ResourcesFailed(VzError):
    """Resource limits could not be applied."""

    code = 1


class SchedulerFailed(VzError):
    """CPU scheduler parameters could not be applied."""

    code = 2


class OutOfMemory(VzError):
    """Not enough memory."""

    code = 4


class NoKernelSupport(VzError):
    """The kernel lacks something that is needed."""

    code = 5


class NoResources(VzError):
    """Not enough system resources."""

    code = 6


class EnvironmentFailed(VzError):
    """The container's environment could not be created."""

    code = 7


class CommandFailed(VzError):
    """The command executed inside the container returned a non-zero status."""

    code = 8


class Locked(VzError):
    """Another command works on this environment."""

    code = 9


class GlobalConfigMissing(VzError):
    """The global configuration file cannot be read."""

    code = 10


class ScriptMissing(VzError):
    """A helper script is missing."""

    code = 11


class NotPermitted(VzError):
    """Permission denied."""

    code = 12


class CapabilityFailed(VzError):
    """Capabilities could not be set."""

    code = 13


class ConfigMissing(VzError):
    """The container's configuration file cannot be found."""

    code = 14


class ExecTimeout(VzError):
    """The command did not finish in time."""

    code = 15


class CheckpointFailed(VzError):
    """The container could not be suspended."""

    code = 16


class RestoreFailed(VzError):
    """The container could not be resumed."""

    code = 17


class InvalidOption(VzError):
    """The command line cannot be understood."""

    code = 20


class InvalidValue(VzError):
    """The value of an option is not valid."""

    code = 21


class RootUnset(VzError):
    """VE_ROOT is not set."""

    code = 22


class PrivateUnset(VzError):
    """VE_PRIVATE is not set."""

    code = 23


class TemplateUnset(VzError):
    """TEMPLATE is not set."""

    code = 24


class RateUnset(VzError):
    """RATE is not set."""

    code = 25


class TotalRateUnset(VzError):
    """TOTALRATE is not set."""

    code = 26


class ParametersMissing(VzError):
    """Not all required parameters are set."""

    code = 27


class TemplateNotGiven(VzError):
    """No OS template is given."""

    code = 29


class BandwidthUnset(VzError):
    """BANDWIDTH is not set."""

    code = 30


class NotRunning(VzError):
    """The container is not running."""

    code = 31


class AlreadyRunning(VzError):
    """The container is already running."""

    code = 32


class StopFailed(VzError):
    """The container could not be stopped."""

    code = 33


class AddAddressFailed(VzError):
    """The IP address could not be added."""

    code = 34


class ValidationFailed(VzError):
    """The configuration is not consistent."""

    code = 35


class NotMounted(VzError):
    """The container is not mounted."""

    code = 40


class Mounted(VzError):
    """The container is mounted or running."""

    code = 41


class PrivateMissing(VzError):
    """The container's private area does not exist."""

    code = 43


class PrivateExists(VzError):
    """The container's private area already exists."""

    code = 44


class NoDiskSpace(VzError):
    """There is not enough disk space."""

    code = 46


class PrivateBroken(VzError):
    """The private area holds no usable system."""

    code = 47


class PrivateNotCreated(VzError):
    """The private area could not be created."""

    code = 48


class MountPointFailed(VzError):
    """The mount point could not be created."""

    code = 49


class MountFailed(VzError):
    """The container could not be mounted."""

    code = 50


class UmountFailed(VzError):
    """The container could not be unmounted."""

    code = 51


class DeleteFailed(VzError):
    """The private area could not be deleted."""

    code = 52


class DirectoryFailed(VzError):
    """A directory could not be created."""

    code = 54


class QuotaOnFailed(VzError):
    """Disk quota could not be turned on."""

    code = 60


class QuotaInitFailed(VzError):
    """Disk quota could not be initialised."""

    code = 61


class QuotaSetFailed(VzError):
    """Disk quota limits could not be set."""

    code = 62


class DiskSpaceUnset(VzError):
    """DISKSPACE is not set."""

    code = 63


class DiskInodesUnset(VzError):
    """DISKINODES is not set."""

    code = 64


class UgidQuotaFailed(VzError):
    """User and group quota could not be set."""

    code = 65


class QuotaOffFailed(VzError):
    """Disk quota could not be turned off."""

    code = 66


class UgidQuotaNotInitialised(VzError):
    """Quota cannot be initialised: the container is mounted."""

    code = 67


class BadHostname(VzError):
    """The host name is not valid."""

    code = 70


class BadAddress(VzError):
    """The IP address is not valid."""

    code = 71


class BadNameserver(VzError):
    """The address of the DNS server is not valid."""

    code = 72


class BadSearchDomain(VzError):
    """The search domain is not valid."""

    code = 73


class PasswordFailed(VzError):
    """The password could not be changed."""

    code = 74


class LockDirUnset(VzError):
    """LOCKDIR is not usable."""

    code = 77


class AddressInUse(VzError):
    """The IP address is in use."""

    code = 78


class ActionScriptFailed(VzError):
    """An action script returned an error."""

    code = 79


class ShapingFailed(VzError):
    """Traffic shaping could not be set up."""

    code = 80


class AccountingFailed(VzError):
    """Traffic accounting could not be set up."""

    code = 81


class SampleMissing(VzError):
    """The configuration sample cannot be found or copied."""

    code = 82


class BadConfig(VzError):
    """The configuration file is not valid."""

    code = 85


class DevicesFailed(VzError):
    """Device permissions could not be set."""

    code = 86


class TemplateMissing(VzError):
    """The OS template cannot be found."""

    code = 91


class RecoverFailed(VzError):
    """The container could not be recovered."""

    code = 92


class ReinstallFailed(VzError):
    """The container could not be reinstalled."""

    code = 94


class CustomConfigureFailed(VzError):
    """The customisation script failed."""

    code = 102


class NetdevFailed(VzError):
    """A network device could not be moved."""

    code = 104


class StartDisabled(VzError):
    """Container start disabled."""

    code = 105


class NetfilterFailed(VzError):
    """The netfilter level could not be set."""

    code = 106


class NoDistribution(VzError):
    """The distribution's configuration cannot be found."""

    code = 107


class NoDistributionScript(VzError):
    """The distribution has no script for this action."""

    code = 108


class ApplyConfigFailed(VzError):
    """The sample could not be applied."""

    code = 109


class StartWaitFailed(VzError):
    """The container did not finish its start in time."""

    code = 133


class MeminfoFailed(VzError):
    """The meminfo mode could not be set."""

    code = 135


class VethFailed(VzError):
    """A virtual network adapter could not be configured."""

    code = 136


class NameFailed(VzError):
    """The name could not be set."""

    code = 137


class ConfigNotSaved(VzError):
    """The configuration could not be saved."""

    code = 139


class RegisterFailed(VzError):
    """The environment could not be registered."""

    code = 140


class UnregisterFailed(VzError):
    """The environment could not be unregistered."""

    code = 142


class CpuMaskFailed(VzError):
    """The CPU mask could not be applied."""

    code = 146


class PciFailed(VzError):
    """A PCI device could not be given to the container."""

    code = 147


class IoFailed(VzError):
    """Disk I/O parameters could not be applied."""

    code = 148


class NodeMaskFailed(VzError):
    """The NUMA node mask could not be applied."""

    code = 149


class ImageMountFailed(VzError):
    """The disk image could not be mounted."""

    code = 152


class ImageUmountFailed(VzError):
    """The disk image could not be unmounted."""

    code = 153


class ImageResizeFailed(VzError):
    """The disk image could not be resized."""

    code = 154


class ImageConvertFailed(VzError):
    """The disk image could not be converted."""

    code = 155


class SnapshotFailed(VzError):
    """The snapshot could not be created."""

    code = 156


class SnapshotDeleteFailed(VzError):
    """The snapshot could not be deleted."""

    code = 158


class SnapshotSwitchFailed(VzError):
    """The snapshot could not be switched to."""

    code = 159


def documented(root: type[VzError] = VzError) -> Iterator[type[VzError]]:
    """Yield every class of the tree once, by exit code: what the manual prints."""
    seen: set[type[VzError]] = set()
    queue: list[type[VzError]] = [root]
    while queue:
        cls = queue.pop()
        if cls not in seen:
            seen.add(cls)
            queue.extend(cls.__subclasses__())
    yield from sorted(seen - {root}, key=lambda cls: (cls.code, cls.__name__))
