#!/bin/sh
# The demo's web server: one page that names the pod. Process 1 has to end on TERM by itself.
trap 'exit 0' TERM INT
echo "${GREETING:-Hello} from $(hostname), web version $WEB_VERSION" >/www/index.html
httpd -f -v -p "${PORT:-8080}" -h /www &
wait
