# POST_CREATE: run once in the tree of a new container. What all containers of
# a template would do at the same minute is spread over the hour. VE_SEED is a
# random number up to 65535.
[ -s /etc/crontab ] || exit 0
minute=$((${VE_SEED:-0} % 60))
awk -v minute="$minute" '
    /^[0-9]+[ \t]+[0-9*\/]+[ \t]/ && !/^[*]/ { $1 = (($1 + minute) % 60) }
    { print }
' /etc/crontab | replace_file /etc/crontab
