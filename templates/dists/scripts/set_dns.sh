# SET_DNS: NAMESERVER and SEARCHDOMAIN replace those of resolv.conf(5); an empty
# one leaves what is there.
file=/etc/resolv.conf
# systemd-resolved's stub would answer with its own idea; a plain file is ours.
if [ -L "$file" ]; then
    case $(readlink "$file") in
    */run/systemd/resolve/* | */run/resolvconf/* | */run/NetworkManager/*) rm -f "$file" ;;
    esac
fi
{
    if [ -n "${SEARCHDOMAIN:-}" ]; then
        echo "search $SEARCHDOMAIN"
    elif [ -f "$file" ]; then
        grep -E '^(search|domain)[[:space:]]' "$file"
    fi
    if [ -n "${NAMESERVER:-}" ]; then
        for server in $NAMESERVER; do
            echo "nameserver $server"
        done
    elif [ -f "$file" ]; then
        grep -E '^nameserver[[:space:]]' "$file"
    fi
    [ ! -f "$file" ] || grep -E '^(options|sortlist)[[:space:]]' "$file"
    true
} | replace_file "$file" || vz_error 3 "cannot write $file"
