# GET_V2PMIGRATE_EXCLUDES: paths not to copy when the container becomes a machine.
cat <<'LIST'
/dev
/proc
/sys
/run
/tmp
LIST
