# SET_USERPASS: USERPW holds USER:PASSWORD pairs, separated by spaces; CRYPTED=yes
# when the passwords are hashes. A user that is not there is made.
[ -n "${USERPW:-}" ] || vz_error 20 "no user and password given"

# add_user NAME: with what the distribution has, else by hand.
add_user() {
    if have useradd; then
        useradd -m "$1"
        return
    fi
    uid=$(awk -F: 'BEGIN { n = 1000 } $3 >= n && $3 < 60000 { n = $3 + 1 } END { print n }' /etc/passwd)
    { cat /etc/passwd && echo "$1:x:$uid:$uid::/home/$1:/bin/sh"; } | replace_file /etc/passwd &&
        { cat /etc/group && echo "$1:x:$uid:"; } | replace_file /etc/group &&
        { cat /etc/shadow && echo "$1:*:19000:0:99999:7:::"; } | replace_file /etc/shadow &&
        mkdir -p "/home/$1" && chown "$uid:$uid" "/home/$1" && chmod 755 "/home/$1"
}

# set_password NAME PASSWORD. printf is built in: the password is in no list of processes.
set_password() {
    if have chpasswd; then
        printf '%s:%s\n' "$1" "$2" | chpasswd $encrypted >/dev/null
        return
    fi
    hash=$2
    [ -n "$encrypted" ] || hash=$(printf '%s' "$2" | mkpasswd -m sha512 -P 0) || return 1
    HASH=$hash NAME=$1 awk -F: 'BEGIN { OFS = ":" } $1 == ENVIRON["NAME"] { $2 = ENVIRON["HASH"] }
        { print }' /etc/shadow | replace_file /etc/shadow
}

encrypted=
[ "${CRYPTED:-no}" = yes ] && encrypted=-e
set -f
for pair in $USERPW; do
    user=${pair%%:*}
    password=${pair#*:}
    case $user in
    '' | *[!A-Za-z0-9._-]* | -*) vz_error 20 "not a user name: $user" ;;
    esac
    [ "$user" != "$pair" ] && [ -n "$password" ] || vz_error 20 "no password for $user"
    grep -q "^$user:" /etc/passwd || add_user "$user" >/dev/null || vz_error 3 "cannot make user $user"
    set_password "$user" "$password" || vz_error 3 "the password of $user cannot be set"
done
