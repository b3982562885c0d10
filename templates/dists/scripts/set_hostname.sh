# SET_HOSTNAME: HOSTNM is the name, IP_ADDR the first address it belongs to.
[ -n "${HOSTNM:-}" ] || exit 0
short=${HOSTNM%%.*}
printf '%s\n' "$HOSTNM" | replace_file /etc/hostname || vz_error 3 "cannot write /etc/hostname"
[ ! -f /etc/sysconfig/network ] || put_param /etc/sysconfig/network HOSTNAME "$HOSTNM"
names=$HOSTNM
[ "$short" = "$HOSTNM" ] || names="$HOSTNM $short"
address=${IP_ADDR%% *}
{
    if [ -f /etc/hosts ]; then
        grep -v '# vz: own name$' /etc/hosts
    else
        printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n'
    fi
    printf '%s\t%s # vz: own name\n' "${address:-127.0.1.1}" "$names"
} | replace_file /etc/hosts || vz_error 3 "cannot write /etc/hosts"
! have hostname || hostname "$HOSTNM" 2>/dev/null || true
