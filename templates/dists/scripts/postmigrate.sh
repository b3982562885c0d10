# POST_MIGRATE: the tree came from a machine. What is for hardware goes: loaders,
# mounts of disks, consoles that are not there, network cards by their address.
[ ! -f /etc/fstab ] || awk '/^[ \t]*#/ || $2 ~ /^\/(proc|sys|tmp|dev\/shm)/' /etc/fstab | replace_file /etc/fstab
rm -f /etc/udev/rules.d/70-persistent-net.rules /etc/udev/rules.d/*-persistent-*.rules
[ ! -f /etc/inittab ] || sed 's/^[1-9]:[0-9]*:respawn:.*getty.*tty[1-9]/#&/' /etc/inittab | replace_file /etc/inittab
if have systemctl; then
    for unit in systemd-udevd.service systemd-modules-load.service systemd-remount-fs.service \
        sys-kernel-debug.mount dev-hugepages.mount getty@tty1.service; do
        ln -sf /dev/null "/etc/systemd/system/$unit"
    done
fi
