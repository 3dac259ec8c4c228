# Finishes the root file system in "$1", where the packages are installed. Part of the recipe: a change makes a new one.
set -eu
root=$1

# Without systemd nobody makes these; a root-owned execute folder makes the startd exit.
chroot "$root" install -d -o condor -g condor -m 755 \
    /var/log/condor /var/spool/condor /var/lib/condor /var/lib/condor/execute

for user in alice bob carol; do
    chroot "$root" useradd --create-home --shell /bin/bash "$user"
done

# The host's own resolver is not reachable from a node, and an unreachable one makes HTCondor hang.
rm -f "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"
rm -f "$root/etc/hostname"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
