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

foreign_interfaces() { # what others wrote in interfaces(5)
    awk -v b="$begin" -v e="$end" '$0 == b { skip = 1 } !skip { print } $0 == e { skip = 0 }' "$1"
}

write_interfaces() {
    file=/etc/network/interfaces
    {
        if [ -f "$file" ]; then
            foreign_interfaces "$file"
        else
            printf 'auto lo\niface lo inet loopback\n'
        fi
        interfaces_text
    } | replace_file "$file" || vz_error 3 "cannot write $file"
}

# forget WRITER: what another writer left, when the guest used another tool. NetworkManager would
# take its hands off what is in interfaces(5).
forget() {
    case $1 in
    ifupdown)
        file=/etc/network/interfaces
        if [ -f "$file" ] && grep -qxF "$begin" "$file"; then
            foreign_interfaces "$file" | replace_file "$file"
        fi ;;
    networkd) rm -f /etc/systemd/network/05-vz-*.network ;;
    netplan) rm -f /etc/netplan/99-vz.yaml ;;
    networkmanager)
        rm -f /etc/NetworkManager/conf.d/vz.conf /etc/NetworkManager/system-connections/vz-*.nmconnection ;;
    esac
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

# Of several files for an interface networkd takes the first: 05 is before what
# distributions, netplan and administrators write.
write_networkd() {
    directory=/etc/systemd/network
    mkdir -p "$directory"
    forget networkd
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
        } | replace_file "$directory/05-vz-venet0.network" || vz_error 3 "cannot write in $directory"
    fi
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$configure" = none ] && continue
        {
            network_file "$name"
            [ -z "$gw" ] || printf '\n[Route]\nGateway=%s\nGatewayOnLink=yes\n' "$gw"
            [ -z "$gw6" ] || printf '\n[Route]\nGateway=%s\nGatewayOnLink=yes\n' "$gw6"
        } | replace_file "$directory/05-vz-$name.network"
    done || vz_error 3 "cannot write in $directory"
    reload_networkd
}

# A networkd that is only starting reads the files by itself, or is started again.
reload_networkd() {
    networkctl reload 2>/dev/null || systemctl --no-block try-restart systemd-networkd 2>/dev/null || true
}

netplan_list() { # WORD…: a YAML list of strings
    list=
    for word in "$@"; do
        list="$list${list:+, }\"$word\""
    done
    printf '[%s]' "$list"
}

netplan_text() {
    printf '# written by the server\nnetwork:\n  version: 2\n  ethernets:\n'
    if [ -n "${ALL_IP_ADDR:-}" ]; then
        families "$ALL_IP_ADDR"
        printf '    venet0:\n      renderer: networkd\n      dhcp4: false\n      dhcp6: false\n'
        printf '      link-local: []\n      accept-ra: false\n      critical: true\n'
        printf '      addresses: %s\n      routes:\n' "$(netplan_list $v4 $v6)"
        set -- $v4
        [ $# = 0 ] || printf '        - {to: "0.0.0.0/0", scope: link, from: "%s"}\n' "${1%%/*}"
        set -- $v6
        [ $# = 0 ] || printf '        - {to: "::/0", scope: link, from: "%s"}\n' "${1%%/*}"
    fi
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$configure" = none ] && continue
        printf '    %s:\n      dhcp4: %s\n      dhcp6: %s\n' "$name" "$dhcp" "$dhcp6"
        [ -z "$ips" ] || printf '      addresses: %s\n' "$(netplan_list $ips)"
        [ -z "$gw$gw6" ] || echo '      routes:'
        [ -z "$gw" ] || printf '        - {to: "0.0.0.0/0", via: "%s", on-link: true}\n' "$gw"
        [ -z "$gw6" ] || printf '        - {to: "::/0", via: "%s", on-link: true}\n' "$gw6"
    done
}

# netplan(5) merges its files, the last one deciding: what others say of an
# interface the server knows is overruled.
write_netplan() {
    file=/etc/netplan/99-vz.yaml
    if [ -n "${ALL_IP_ADDR:-}${ALL_NETIF:-}" ]; then
        (umask 077; [ -e "$file" ] || : >"$file")
        netplan_text | replace_file "$file" || vz_error 3 "cannot write $file"
    else
        forget netplan
    fi
    netplan generate 2>/dev/null && reload_networkd
    [ ! -d /etc/NetworkManager ] || nmcli connection reload 2>/dev/null || true
}

write_networkmanager() {
    # What the server set is left alone; only adapters with DHCP are NetworkManager's.
    mine=interface-name:venet0
    directory=/etc/NetworkManager/system-connections
    mkdir -p /etc/NetworkManager/conf.d "$directory"
    forget networkmanager
    list=$(adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$dhcp$dhcp6" != nono ] || printf ';interface-name:%s' "$name"
    done)
    printf '# written by the server\n[keyfile]\nunmanaged-devices=%s\n' "$mine$list" |
        replace_file /etc/NetworkManager/conf.d/vz.conf || vz_error 3 "cannot configure NetworkManager"
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$dhcp$dhcp6" != nono ] || continue
        # "disabled" would turn IPv6 off in the kernel, for what is set later too.
        m4=disabled m6=ignore
        [ "$dhcp" = yes ] && m4=auto
        [ "$dhcp6" = yes ] && m6=auto
        printf '[connection]\nid=vz-%s\ntype=ethernet\ninterface-name=%s\n\n[ipv4]\nmethod=%s\n\n[ipv6]\nmethod=%s\n' \
            "$name" "$name" "$m4" "$m6" >"$directory/vz-$name.nmconnection"
        chmod 600 "$directory/vz-$name.nmconnection"
    done
    nmcli general reload 2>/dev/null && nmcli connection reload 2>/dev/null || return 0
    if [ -e "$directory/vz-${DEV:-}.nmconnection" ]; then
        # Else it stays with a connection that it made up before it was told.
        nmcli --wait 0 connection up "vz-$DEV" >/dev/null 2>&1 || true
    elif [ -n "${DEV:-}" ]; then
        # It clears an adapter it lets go, and the server sets it afterwards.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            case $(nmcli -g GENERAL.STATE device show "$DEV" 2>/dev/null) in
            '' | 10*) break ;;
            esac
            sleep 0.2
        done
    fi
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

# Whoever configures the guest's interfaces at its boot is told. Directories alone
# say little: packages leave them behind, and hooks of one tool are in another's.
yaml() {
    for file in /etc/netplan/*.yaml; do
        [ ! -e "$file" ] || [ "$file" = /etc/netplan/99-vz.yaml ] || return 0
    done
    return 1
}

# stop_dhcp NAME: end the clients started for an adapter that is set from outside.
stop_dhcp() {
    for file in /proc/[0-9]*/cmdline; do
        words=$(tr '\0' ' ' 2>/dev/null <"$file") || continue
        case " $words" in
        *dhclient*" $1 "* | *udhcpc*" $1 "* | *dhcpcd*" $1 "*)
            file=${file%/cmdline}
            kill "${file#/proc/}" 2>/dev/null && ended "$file" ;;
        esac
    done
}

# ended /proc/PID: wait three seconds at most for a client to take its address away,
# or it would take away what is set from outside after us.
ended() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        [ -d "$1" ] || return 0
        sleep 0.2
    done
}

if have netplan && yaml; then
    style=netplan
elif [ -e /etc/systemd/system/multi-user.target.wants/systemd-networkd.service ]; then
    style=networkd
elif [ -d /etc/NetworkManager ] && have NetworkManager; then
    style=networkmanager
elif have ifup; then
    style=ifupdown
elif have netplan; then
    style=netplan
elif [ -d /etc/network ]; then
    style=ifupdown
else
    style=none
fi
for other in ifupdown networkd netplan networkmanager; do
    [ "$other" = "$style" ] || forget "$other"
done
case $style in
ifupdown) write_interfaces ;;
networkd) write_networkd ;;
netplan) write_netplan ;;
networkmanager) write_networkmanager ;;
esac

case $style in
none | ifupdown)
    adapters | while IFS='|' read -r name mac ips gw gw6 dhcp dhcp6 configure; do
        [ "$name" = "${DEV:-}" ] || continue
        if [ "$dhcp" = yes ]; then
            start_dhcp "$name"
        else
            stop_dhcp "$name"
        fi
    done ;;
esac
exit 0
