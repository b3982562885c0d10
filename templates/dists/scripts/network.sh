# ADD_IP, DEL_IP, NETIF_ADD, NETIF_DEL: make the guest's own configuration agree
# with its network, which the server has set already. ALL_IP_ADDR are venet0's
# addresses with their lengths; ALL_NETIF is an adapter a line:
# NAME|MAC|ADDRESSES|GW|GW6|DHCP|DHCP6|CONFIGURE. DEV is the adapter in question.
begin='# vz: begin, written by the server'
end='# vz: end'

# Each writer makes the whole state right, whatever was there before.

families() {
    v4= v6=
    for address in $1; do
        case $address in
        *:*) v6="$v6 $address" ;;
        *) v4="$v4 $address" ;;
        esac
    done
}

interfaces_text() {
    echo "$begin"
    if [ -n "${ALL_IP_ADDR:-}" ]; then
        families "$ALL_IP_ADDR"
        echo "auto venet0"
        echo "iface venet0 inet manual"
        echo "    up ip link set venet0 up"
        for address in $v4 $v6; do
            echo "    up ip addr replace $address dev venet0"
        done
        set -- $v4
        [ $# = 0 ] || echo "    up ip route replace default dev venet0 scope link src ${1%%/*}"
        set -- $v6
        [ $# = 0 ] || echo "    up ip -6 route replace default dev venet0 src ${1%%/*}"
    fi
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$configure" = none ] && continue
        echo "auto $name"
        if [ "$dhcp" = yes ]; then
            echo "iface $name inet dhcp"
        else
            echo "iface $name inet manual"
            echo "    up ip link set $name up"
            for address in $ips; do
                echo "    up ip addr replace $address dev $name"
            done
            [ -z "$gw" ] || echo "    up ip route replace default via $gw dev $name onlink"
            [ -z "$gw6" ] || echo "    up ip -6 route replace default via $gw6 dev $name onlink"
        fi
        [ "$dhcp6" != yes ] || echo "iface $name inet6 dhcp"
    done
    echo "$end"
}

adapters() {
    [ -z "${ALL_NETIF:-}" ] || printf '%s\n' "$ALL_NETIF"
}

write_interfaces() {
    file=/etc/network/interfaces
    {
        if [ -f "$file" ]; then
            awk -v b="$begin" -v e="$end" '$0 == b { skip = 1 } !skip { print } $0 == e { skip = 0 }' "$file"
        else
            printf 'auto lo\niface lo inet loopback\n'
        fi
        interfaces_text
    } | replace_file "$file" || vz_error 3 "cannot write $file"
}

network_file() { # NAME: the [Network] part of systemd.network(5), from ips gw gw6 dhcp dhcp6
    printf '# written by the server\n[Match]\nName=%s\n\n[Network]\n' "$1"
    case $dhcp$dhcp6 in
    yesyes) echo "DHCP=yes" ;;
    yes*) echo "DHCP=ipv4" ;;
    *yes) echo "DHCP=ipv6" ;;
    esac
    for address in $ips; do
        echo "Address=$address"
    done
}

write_networkd() {
    directory=/etc/systemd/network
    mkdir -p "$directory"
    rm -f "$directory"/10-vz-*.network
    if [ -n "${ALL_IP_ADDR:-}" ]; then
        families "$ALL_IP_ADDR"
        ips=$ALL_IP_ADDR dhcp=no dhcp6=no
        {
            network_file venet0
            printf 'LinkLocalAddressing=no\nIPv6AcceptRA=no\nKeepConfiguration=yes\n'
            set -- $v4
            [ $# = 0 ] || printf '\n[Route]\nDestination=0.0.0.0/0\nScope=link\nPreferredSource=%s\n' "${1%%/*}"
            set -- $v6
            [ $# = 0 ] || printf '\n[Route]\nDestination=::/0\nPreferredSource=%s\n' "${1%%/*}"
            printf '\n[Link]\nARP=no\n'
        } | replace_file "$directory/10-vz-venet0.network" || vz_error 3 "cannot write in $directory"
    fi
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$configure" = none ] && continue
        {
            network_file "$name"
            [ -z "$gw" ] || printf '\n[Route]\nGateway=%s\nGatewayOnLink=yes\n' "$gw"
            [ -z "$gw6" ] || printf '\n[Route]\nGateway=%s\nGatewayOnLink=yes\n' "$gw6"
        } | replace_file "$directory/10-vz-$name.network"
    done || vz_error 3 "cannot write in $directory"
    [ "${VE_STATE:-}" != running ] || networkctl reload 2>/dev/null || true
}

write_networkmanager() {
    # What the server set is left alone; only adapters with DHCP are NetworkManager's.
    mine=interface-name:venet0
    directory=/etc/NetworkManager/system-connections
    mkdir -p /etc/NetworkManager/conf.d "$directory"
    rm -f "$directory"/vz-*.nmconnection
    list=$(adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$dhcp$dhcp6" != nono ] || printf ';interface-name:%s' "$name"
    done)
    printf '# written by the server\n[keyfile]\nunmanaged-devices=%s\n' "$mine$list" |
        replace_file /etc/NetworkManager/conf.d/vz.conf || vz_error 3 "cannot configure NetworkManager"
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$dhcp$dhcp6" != nono ] || continue
        m4=disabled m6=disabled
        [ "$dhcp" = yes ] && m4=auto
        [ "$dhcp6" = yes ] && m6=auto
        printf '[connection]\nid=vz-%s\ntype=ethernet\ninterface-name=%s\n\n[ipv4]\nmethod=%s\n\n[ipv6]\nmethod=%s\n' \
            "$name" "$name" "$m4" "$m6" >"$directory/vz-$name.nmconnection"
        chmod 600 "$directory/vz-$name.nmconnection"
    done
    [ "${VE_STATE:-}" != running ] || nmcli connection reload 2>/dev/null || true
}

# start_dhcp NAME: for guests whose own tools are not told by a file, and at once.
start_dhcp() {
    if have ifup && [ -f /etc/network/interfaces ]; then
        ifdown "$1" >/dev/null 2>&1
        ifup "$1" >/dev/null 2>&1 && return
    fi
    if have udhcpc || busybox udhcpc --help >/dev/null 2>&1; then
        client=udhcpc
        have udhcpc || client="busybox udhcpc"
        script=/run/vz-udhcpc.sh
        mkdir -p /run
        cat >"$script" <<'DHCP'
#!/bin/sh
case $1 in
deconfig) ip addr flush dev "$interface" ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    for gateway in ${router:-}; do
        ip route replace default via "$gateway" dev "$interface" && break
    done ;;
esac
DHCP
        chmod 755 "$script"
        $client -b -q -t 3 -T 1 -n -s "$script" -i "$1" </dev/null >/dev/null 2>&1 &
    elif have dhclient; then
        dhclient -nw "$1" >/dev/null 2>&1 &
    elif have dhcpcd; then
        dhcpcd -b "$1" >/dev/null 2>&1 &
    fi
}

if [ -e /etc/systemd/system/multi-user.target.wants/systemd-networkd.service ] || [ -d /etc/netplan ]; then
    write_networkd
    style=networkd
elif [ -d /etc/NetworkManager ] && have NetworkManager; then
    write_networkmanager
    style=networkmanager
elif [ -d /etc/network ] || have ifup; then
    write_interfaces
    style=ifupdown
else
    style=none
fi

case $style in
none | ifupdown)
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        if [ "$name" = "${DEV:-}" ] && [ "$dhcp" = yes ]; then
            start_dhcp "$name"
        fi
    done ;;
esac
exit 0
