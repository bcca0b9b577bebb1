#!/bin/sh
# A router with a server and a registry on it, and a node on each of two networks behind it.
# The first process of namespaces of its own; whoever ends it ends all.
# usage: subnets.sh FOLDER RKUBE IMAGE   (IMAGE is an OCI layout with its tag: oci:FOLDER:TAG)
set -eu
dir=$1 rkube=$2 image=$3
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
"$rkube" server --no-agent --data-dir "$dir/server" --advertise-address 10.1.0.1 --tls-san 10.2.0.1 \
    >"$dir/server.log" 2>&1 &
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "0.0.0.0:5000"}\n' \
    "$dir/images" >"$dir/registry.yml"
docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
for n in 1 2; do
    mkfifo "$dir/ready$n"
    unshare --mount --uts --ipc --net --pid --fork --kill-child --mount-proc --propagation private \
        "$rkube" node-init --hostname "n$n" >"$dir/ready$n" &
    unshare=$!
    read -r _ <"$dir/ready$n"
    init=$(pgrep -P $unshare)
    ip link add "r$n" type veth peer name eth0 netns "$init"
    ip addr add "10.$n.0.1/24" dev "r$n"
    ip link set "r$n" up
    nsenter -t "$init" -n sh -c "ip link set lo up; ip addr add 10.$n.0.2/24 dev eth0
        ip link set eth0 up; ip route add default via 10.$n.0.1"
    eval "init$n=$init"
done
until token=$("$rkube" token create --data-dir "$dir/server" 2>/dev/null); do sleep 0.05; done
for n in 1 2; do
    eval "init=\$init$n"
    RKUBE_TOKEN=$token nsenter -t "$init" -m -u -i -n -p "$rkube" agent --node-name "n$n" \
        --server "https://10.$n.0.1:6443" --data-dir "$dir/n$n" --cgroup-root "/$(basename "$dir")/n$n" \
        --registry-mirror "registry.rkube.local=http://10.$n.0.1:5000" >"$dir/n$n.log" 2>&1 &
done
until skopeo --insecure-policy copy --quiet --dest-tls-verify=false "$image" \
    docker://127.0.0.1:5000/web:1 2>/dev/null; do sleep 0.05; done
touch "$dir/up"
wait
