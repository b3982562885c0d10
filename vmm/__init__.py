"""Virtual machines, delegated to KVM through libvirt."""
