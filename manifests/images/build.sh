#!/bin/sh
# Builds the demo's images as OCI layouts in the folder that is named: web_1 and web_2, a small web
# server made of Debian's busybox-static. Needs busybox-static, umoci; nothing is downloaded.
set -eu
out=${1:?usage: build.sh FOLDER}
mkdir -p "$out"
here=$(cd "$(dirname "$0")" && pwd)
for version in 1 2; do
    layout=$out/web_$version
    # Made already by this very script?
    stamp=$(cat "$here/build.sh" "$here/web.sh" | sha256sum)
    [ "$(cat "$layout/.made-by" 2>/dev/null)" = "$stamp" ] && continue
    work=$(mktemp -d)
    rm -rf "$layout"
    umoci --log warn init --layout "$layout"
    umoci --log warn new --image "$layout:$version"
    umoci --log warn unpack --image "$layout:$version" "$work/bundle"
    root=$work/bundle/rootfs
    mkdir -p "$root/bin" "$root/etc" "$root/tmp" "$root/www" "$root/root"
    chmod 1777 "$root/tmp"
    cp /bin/busybox "$root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    cp "$here/web.sh" "$root/bin/web"
    chmod 755 "$root/bin/web"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    umoci --log warn repack --image "$layout:$version" "$work/bundle"
    umoci --log warn config --image "$layout:$version" --config.entrypoint /bin/web \
        --config.env "WEB_VERSION=$version" --config.env PATH=/bin --config.exposedports 8080
    umoci --log warn gc --layout "$layout"
    rm -rf "$work"
    echo "$stamp" >"$layout/.made-by"
done
