"""Configurations in the shapes found on servers: written by hand, by panels, by old versions.

Written for these tests; the shapes are those of published configurations: OpenVZ 2.x to 4.x, Parallels
and Virtuozzo, Proxmox, hosting panels. Name → text.
"""

from __future__ import annotations

#: Proxmox VE: amounts with suffixes and fractions, a layout key, lower-case names of samples.
PROXMOX = """\
ONBOOT="yes"

PHYSPAGES="0:256M"
SWAPPAGES="0:512M"
KMEMSIZE="116M:128M"
DCACHESIZE="58M:64M"
LOCKEDPAGES="128M"
PRIVVMPAGES="unlimited"
SHMPAGES="unlimited"
NUMPROC="unlimited"
VMGUARPAGES="0:unlimited"
OOMGUARPAGES="0:unlimited"
NUMTCPSOCK="unlimited"
NUMFLOCK="unlimited"
NUMPTY="unlimited"
NUMSIGINFO="unlimited"
TCPSNDBUF="unlimited"
TCPRCVBUF="unlimited"
OTHERSOCKBUF="unlimited"
DGRAMRCVBUF="unlimited"
NUMOTHERSOCK="unlimited"
NUMFILE="unlimited"
NUMIPTENT="unlimited"

# Disk quota parameters (in form of softlimit:hardlimit)
DISKSPACE="2G:2.2G"
DISKINODES="131072:144179"
QUOTATIME="0"
QUOTAUGIDLIMIT="0"

# CPU fair scheduler parameter
CPUUNITS="1000"
CPUS="1"
VE_ROOT="/var/lib/vz/root/$VEID"
VE_PRIVATE="/var/lib/vz/private/$VEID"
VE_LAYOUT="simfs"
OSTEMPLATE="debian-7.0-standard_7.0-2_i386.tar.gz"
ORIGIN_SAMPLE="pve.auto"
HOSTNAME="wild.example.com"
SEARCHDOMAIN="example.com"
NETIF="ifname=eth0,bridge=vmbr0,mac=00:18:51:A1:C6:35,host_ifname=veth101.0,host_mac=00:18:51:BF:1D:AC"
"""

#: A first-generation file: parameters nobody has today, comments in the middle of blocks, no quotes.
OLD = """\
# Copyright (C) 2000-2008, SWsoft. All rights reserved.
#
# This file is distributed under the terms of the GNU GPL.

ONBOOT=yes
# UBC parameters (in form of barrier:limit)
# Primary parameters
AVNUMPROC=40:40
NUMPROC=65:65
NUMTCPSOCK=80:80
NUMOTHERSOCK=80:80
VMGUARPAGES=6144:2147483647
# Secondary parameters
KMEMSIZE=2752512:2936012
TCPSNDBUF=319488:524288
TCPRCVBUF=319488:524288
OTHERSOCKBUF=132096:336896
DGRAMRCVBUF=132096:132096
OOMGUARPAGES=6144:2147483647
# Auxiliary parameters
LOCKEDPAGES=32:32
SHMPAGES=8192:8192
PRIVVMPAGES=22528:24576
NUMFILE=2048:2048
NUMFLOCK=100:110
NUMPTY=16:16
NUMSIGINFO=256:256
DCACHESIZE=1048576:1097728
PHYSPAGES=0:2147483647
NUMIPTENT=128:128
# Disk quota parameters (in form of softlimit:hardlimit)
DISKSPACE=1048576:1153434
DISKINODES=200000:220000
QUOTATIME=0
CPUWEIGHT=500
TOTVMPAGES=22528:24576
IPCSHMPAGES=8192:8192
ANONSHPAGES=8192:8192
VE_TYPE=regular
OFFLINE_MANAGEMENT=yes
"""

#: A commercial one: keys of the panel and of backups, templates with leading dots, a pair for SLM.
VIRTUOZZO = """\
VERSION="2"
ONBOOT="yes"
UUID="3c0ed2c5-1f29-4b51-9ff2-c4f0e2d1a0b7"
DISTRIBUTION="centos"
OSTEMPLATE=".centos-5-x86_64"
TEMPLATES=" .php-centos-5-x86_64 .mysql-centos-5-x86_64"
TECHNOLOGIES="x86_64 nptl"
VE_ROOT="/vz/root/$VEID"
VE_PRIVATE="/vz/private/$VEID"
SLMMODE="all"
SLMMEMORYLIMIT="536870912:536870912"
MEMINFO="pages:131072"
NUMPROC="32567:32567"
NUMPTY="255:255"
DISKSPACE="10485760:10485760"
DISKINODES="655360:655360"
QUOTATIME="0"
QUOTAUGIDLIMIT="1000"
CPUUNITS="1000"
RATE="eth0:1:8"
RATEBOUND="no"
CAPABILITY="SYS_TIME:on "
IPTABLES="ip_tables iptable_filter ipt_state ip_conntrack iptable_nat "
NAMESERVER="192.0.2.1 192.0.2.2"
IP_ADDRESS="192.0.2.10/255.255.255.0 192.0.2.11"
OFFLINE_SERVICE="vzpp vzpp-plesk"
CLASSID="2"
BACKUP="yes"
BACKUP_KEEP="3"
PLATFORM="linux"
ORIGIN_SAMPLE="slm.512MB"
CONFIG_CUSTOMIZED="yes"
"""

#: Edited by hand, in an editor of another system: CRLF, tabs, exports, doubled keys, odd quotes.
EDITED = (
    "\ufeff# my box\r\n"
    "export ONBOOT='yes'\r\n"
    '\tPHYSPAGES="0:131072"\t# half a gigabyte\r\n'
    "SWAPPAGES=0:65536\r\n"
    "CPUUNITS=500\r\n"
    'CPUUNITS="1000"\r\n'
    'DISKSPACE="10G:11G"\r\n'
    "DISKINODES=200000:220000\r\n"
    'QUOTATIME="0"\r\n'
    'DESCRIPTION="it\'s \\"mine\\" \\$5"\r\n'
    'HOSTNAME=""\r\n'
    'IP_ADDRESS=""\r\n'
    'VE_ROOT="/vz/root/${VEID}"\r\n'
    "VE_PRIVATE=/vz/private/$VEID\r\n"
    "OSTEMPLATE=busybox\r\n"
    "if [ -f /etc/vz/local ]; then . /etc/vz/local; fi\r\n"
    "NAME = spaced\r\n"
    "\r\n\r\n"
    "#ONBOOT=no"
)

#: Made by a panel: everything on the longest lines, empty values, its own keys, bytes of an old encoding.
PANEL = (
    b"# Solus \xe9dition\n"
    b'PHYSPAGES="0:262144"\nSWAPPAGES="0:131072"\nVM_OVERCOMMIT="1.5"\n'
    b'NUMPROC="240:240"\nNUMFILE="9312:9312"\nDISKSPACE="20971520:20971520"\n'
    b'DISKINODES="1310720:1310720"\nQUOTATIME="0"\nQUOTAUGIDLIMIT="10000"\n'
    b'CPUUNITS="1000"\nCPULIMIT="100"\nCPUS="2"\nIOPRIO="4"\n'
    b'FEATURES="nfs:off fuse:on ppp:on "\n'
    b'DEVNODES="net/tun:rw "\nDEVICES="c:10:200:rw c:10:229:rw "\n'
    b'NAMESERVER=""\nHOSTNAME="h"\nDESCRIPTION="caf\xe9"\n'
    b"CUSTOM_" + b"X" * 200 + b'="' + b"y" * 4000 + b'"\n'
    b'VE_ROOT="/vz/root/$VEID"\nVE_PRIVATE="/vz/private/$VEID"\n'
    b'OSTEMPLATE="ubuntu-16.04-x86_64"\nORIGIN_SAMPLE="vswap-256m"\n'
).decode("utf-8", "surrogateescape")

CONFIGURATIONS = {
    "proxmox": PROXMOX, "old": OLD, "virtuozzo": VIRTUOZZO, "edited": EDITED, "panel": PANEL,
}  # fmt: skip
