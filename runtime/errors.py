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

    def __init_subclass__(cls, code: int | None = None) -> None:
        """Give a class its exit status; without ``code`` it is that of the class above."""
        super().__init_subclass__()
        if code is not None:
            cls.code = code

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        """Carry ``message`` (one line: what and why) and ``hint`` (one line: what to try)."""
        self.message = message or (type(self).__doc__ or "").splitlines()[0].rstrip(".")
        self.hint = hint
        super().__init__(self.message)


class SystemFailure(VzError, code=3):
    """A system call or a file operation failed."""


class ResourcesFailed(VzError, code=1):
    """Resource limits could not be applied."""


class SchedulerFailed(VzError, code=2):
    """CPU scheduler parameters could not be applied."""


class OutOfMemory(VzError, code=4):
    """Not enough memory."""


class NoKernelSupport(VzError, code=5):
    """The kernel lacks something that is needed."""


class NoResources(VzError, code=6):
    """Not enough system resources."""


class EnvironmentFailed(VzError, code=7):
    """The container's environment could not be created."""


class CommandFailed(VzError, code=8):
    """The command executed inside the container returned a non-zero status."""


class Locked(VzError, code=9):
    """Another command works on this environment."""


class GlobalConfigMissing(VzError, code=10):
    """The global configuration file cannot be read."""


class ScriptMissing(VzError, code=11):
    """A helper script is missing."""


class NotPermitted(VzError, code=12):
    """Permission denied."""


class CapabilityFailed(VzError, code=13):
    """Capabilities could not be set."""


class ConfigMissing(VzError, code=14):
    """The container's configuration file cannot be found."""


class ExecTimeout(VzError, code=15):
    """The command did not finish in time."""


class CheckpointFailed(VzError, code=16):
    """The container could not be suspended."""


class RestoreFailed(VzError, code=17):
    """The container could not be resumed."""


class InvalidOption(VzError, code=20):
    """The command line cannot be understood."""


class InvalidValue(VzError, code=21):
    """The value of an option is not valid."""


class RootUnset(VzError, code=22):
    """VE_ROOT is not set."""


class PrivateUnset(VzError, code=23):
    """VE_PRIVATE is not set."""


class TemplateUnset(VzError, code=24):
    """TEMPLATE is not set."""


class RateUnset(VzError, code=25):
    """RATE is not set."""


class TotalRateUnset(VzError, code=26):
    """TOTALRATE is not set."""


class ParametersMissing(VzError, code=27):
    """Not all required parameters are set."""


class TemplateNotGiven(VzError, code=29):
    """No OS template is given."""


class BandwidthUnset(VzError, code=30):
    """BANDWIDTH is not set."""


class NotRunning(VzError, code=31):
    """The container is not running."""


class AlreadyRunning(VzError, code=32):
    """The container is already running."""


class StopFailed(VzError, code=33):
    """The container could not be stopped."""


class AddAddressFailed(VzError, code=34):
    """The IP address could not be added."""


class ValidationFailed(VzError, code=35):
    """The configuration is not consistent."""


class NotMounted(VzError, code=40):
    """The container is not mounted."""


class Mounted(VzError, code=41):
    """The container is mounted or running."""


class PrivateMissing(VzError, code=43):
    """The container's private area does not exist."""


class PrivateExists(VzError, code=44):
    """The container's private area already exists."""


class NoDiskSpace(VzError, code=46):
    """There is not enough disk space."""


class PrivateBroken(VzError, code=47):
    """The private area holds no usable system."""


class PrivateNotCreated(VzError, code=48):
    """The private area could not be created."""


class MountPointFailed(VzError, code=49):
    """The mount point could not be created."""


class MountFailed(VzError, code=50):
    """The container could not be mounted."""


class UmountFailed(VzError, code=51):
    """The container could not be unmounted."""


class DeleteFailed(VzError, code=52):
    """The private area could not be deleted."""


class DirectoryFailed(VzError, code=54):
    """A directory could not be created."""


class QuotaOnFailed(VzError, code=60):
    """Disk quota could not be turned on."""


class QuotaInitFailed(VzError, code=61):
    """Disk quota could not be initialised."""


class QuotaSetFailed(VzError, code=62):
    """Disk quota limits could not be set."""


class DiskSpaceUnset(VzError, code=63):
    """DISKSPACE is not set."""


class DiskInodesUnset(VzError, code=64):
    """DISKINODES is not set."""


class UgidQuotaFailed(VzError, code=65):
    """User and group quota could not be set."""


class QuotaOffFailed(VzError, code=66):
    """Disk quota could not be turned off."""


class UgidQuotaNotInitialised(VzError, code=67):
    """Quota cannot be initialised: the container is mounted."""


class BadHostname(VzError, code=70):
    """The host name is not valid."""


class BadAddress(VzError, code=71):
    """The IP address is not valid."""


class BadNameserver(VzError, code=72):
    """The address of the DNS server is not valid."""


class BadSearchDomain(VzError, code=73):
    """The search domain is not valid."""


class PasswordFailed(VzError, code=74):
    """The password could not be changed."""


class LockDirUnset(VzError, code=77):
    """LOCKDIR is not usable."""


class AddressInUse(VzError, code=78):
    """The IP address is in use."""


class ActionScriptFailed(VzError, code=79):
    """An action script returned an error."""


class ShapingFailed(VzError, code=80):
    """Traffic shaping could not be set up."""


class AccountingFailed(VzError, code=81):
    """Traffic accounting could not be set up."""


class SampleMissing(VzError, code=82):
    """The configuration sample cannot be found or copied."""


class BadConfig(VzError, code=85):
    """The configuration file is not valid."""


class DevicesFailed(VzError, code=86):
    """Device permissions could not be set."""


class TemplateMissing(VzError, code=91):
    """The OS template cannot be found."""


class RecoverFailed(VzError, code=92):
    """The container could not be recovered."""


class ReinstallFailed(VzError, code=94):
    """The container could not be reinstalled."""


class CustomConfigureFailed(VzError, code=102):
    """The customisation script failed."""


class NetdevFailed(VzError, code=104):
    """A network device could not be moved."""


class StartDisabled(VzError, code=105):
    """Container start disabled."""


class NetfilterFailed(VzError, code=106):
    """The netfilter level could not be set."""


class NoDistribution(VzError, code=107):
    """The distribution's configuration cannot be found."""


class NoDistributionScript(VzError, code=108):
    """The distribution has no script for this action."""


class ApplyConfigFailed(VzError, code=109):
    """The sample could not be applied."""


class StartWaitFailed(VzError, code=133):
    """The container did not finish its start in time."""


class MeminfoFailed(VzError, code=135):
    """The meminfo mode could not be set."""


class VethFailed(VzError, code=136):
    """A virtual network adapter could not be configured."""


class NameFailed(VzError, code=137):
    """The name could not be set."""


class ConfigNotSaved(VzError, code=139):
    """The configuration could not be saved."""


class RegisterFailed(VzError, code=140):
    """The environment could not be registered."""


class UnregisterFailed(VzError, code=142):
    """The environment could not be unregistered."""


class CpuMaskFailed(VzError, code=146):
    """The CPU mask could not be applied."""


class PciFailed(VzError, code=147):
    """A PCI device could not be given to the container."""


class IoFailed(VzError, code=148):
    """Disk I/O parameters could not be applied."""


class NodeMaskFailed(VzError, code=149):
    """The NUMA node mask could not be applied."""


class ImageMountFailed(VzError, code=152):
    """The disk image could not be mounted."""


class ImageUmountFailed(VzError, code=153):
    """The disk image could not be unmounted."""


class ImageResizeFailed(VzError, code=154):
    """The disk image could not be resized."""


class ImageConvertFailed(VzError, code=155):
    """The disk image could not be converted."""


class SnapshotFailed(VzError, code=156):
    """The snapshot could not be created."""


class SnapshotDeleteFailed(VzError, code=158):
    """The snapshot could not be deleted."""


class SnapshotSwitchFailed(VzError, code=159):
    """The snapshot could not be switched to."""


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
