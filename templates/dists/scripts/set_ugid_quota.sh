# SET_UGID_QUOTA: MAJOR and MINOR are those of the device quota tools find / on,
# DEVFS the kind of /dev; without MAJOR the preparations are taken back.
device=/dev/vzfs
if [ -z "${MAJOR:-}" ]; then
    rm -f "$device" /aquota.user /aquota.group
    [ ! -f /etc/fstab ] || grep -v "^$device[[:space:]]" /etc/fstab | replace_file /etc/fstab
    exit 0
fi
[ -e "$device" ] || mknod "$device" b "$MAJOR" "${MINOR:-0}" 2>/dev/null || true
{
    [ ! -f /etc/fstab ] || grep -v "^$device[[:space:]]" /etc/fstab
    echo "$device / vzfs rw,usrquota,grpquota 0 0"
} | replace_file /etc/fstab
# A mtab that is a file of its own must show the options too.
if [ -f /etc/mtab ] && [ ! -L /etc/mtab ]; then
    {
        echo "$device / vzfs rw,usrquota,grpquota 0 0"
        awk '$2 != "/"' /etc/mtab
    } | replace_file /etc/mtab
fi
