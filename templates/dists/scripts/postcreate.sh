# POST_CREATE: run once when the container first starts. What all containers of
# a template would do at the same minute is spread over the hour.
[ -s /etc/crontab ] || exit 0
seed=$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')
minute=$((seed % 60))
awk -v minute="$minute" '
    /^[0-9]+[ \t]+[0-9*\/]+[ \t]/ && !/^[*]/ { $1 = (($1 + minute) % 60) }
    { print }
' /etc/crontab | replace_file /etc/crontab
