# Boots a node: runs in fresh namespaces, mounts the node's disk over the shared root file system, makes what a
# kernel and systemd would have made, goes inside, and becomes $LAB_BECOME.
#   LAB_LOWER  the shared root file system        LAB_DISK  folder with upper, work and merged
#   LAB_CONTROLLERS  of its control groups
#   LAB_NAME   the node's name                    LAB_BIND  lines 'file on the host<TAB>path inside'
set -eu
# /proc is still the host's: the number is that by which the host knows this process.
read -r pid rest </proc/self/stat
echo "pid $pid"

cd "$LAB_DISK"
mount -t overlay overlay \
    -o "lowerdir=$LAB_LOWER,upperdir=$LAB_DISK/upper,workdir=$LAB_DISK/work" "$LAB_DISK/merged"
cd merged

tab=$(printf '\t')
printf '%s\n' "$LAB_BIND" | while IFS=$tab read -r from to; do
    [ -n "$from" ] || continue
    mkdir -p ".${to%/*}"
    [ -e ".$to" ] || : >".$to"
    mount --bind "$from" ".$to"
done

mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
if [ -n "$LAB_CONTROLLERS" ]; then
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for controller in $LAB_CONTROLLERS; do
        mkdir "sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "sys/fs/cgroup/$controller"
    done
fi
mount -t tmpfs -o mode=755,nosuid tmpfs run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
mount -t tmpfs -o mode=755,nosuid tmpfs dev
mkdir dev/net dev/pts dev/shm
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0' 'net/tun 10 200'; do
    set -- $device
    mknod -m 666 "dev/$1" c "$2" "$3"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr

hostname "$LAB_NAME"
ip link set lo up

pivot_root . mnt
cd /
umount -l /mnt
PATH=/usr/sbin:/usr/bin:/sbin:/bin
install -d /run/lock
install -d -o condor -g condor -m 775 /run/condor /run/lock/condor

echo ready
# The first process inherits orphans; with the signal ignored the kernel takes them away when they end.
exec env --ignore-signal=CHLD $LAB_BECOME
