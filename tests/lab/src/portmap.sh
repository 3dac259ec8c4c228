# Runs a router's service for port mappings: in the router's network and namespaces of its own, with the nodes' root
# file system, and becomes $LAB_BECOME.
#   LAB_ROOT  the root file system        LAB_DIR  a folder with miniupnpd.conf
set -eu
# /proc is still the host's: the number is that by which the host knows this process.
read -r pid rest </proc/self/stat
echo "pid $pid"

mount --bind "$LAB_DIR" "$LAB_ROOT/mnt"
mount -t proc -o nosuid,nodev,noexec proc "$LAB_ROOT/proc"
mount --rbind /dev "$LAB_ROOT/dev"
chroot "$LAB_ROOT" miniupnpd -d -f /mnt/miniupnpd.conf -P /mnt/pid </dev/null >/dev/null &
echo ready
exec $LAB_BECOME
