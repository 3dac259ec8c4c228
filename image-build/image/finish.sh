# Finishes the root file system in "$1", where packages and files are. Part of the image's inputs: a change makes
# another image. What differs from machine to machine or from build to build does not belong into an image.
set -eu
root=$1

# Made at the first boot.
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/hostname "$root"/etc/.pwd.lock "$root"/var/lib/aerie-image-booted
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"

printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service systemd-repart.service
# The network comes when it comes: an appliance without one says so, and starts all the same.
chroot "$root" systemctl --quiet mask systemd-networkd-wait-online.service
# For volumes of a kind that this disk does not have.
chroot "$root" systemctl --quiet disable e2scrub_reap.service e2scrub_all.timer
# HTCondor is started by Aerie, once it knows as what.
if [ -e "$root/usr/lib/systemd/system/condor.service" ]; then
    chroot "$root" systemctl --quiet disable condor.service
fi

# The archives from which this machine is kept up to date.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
cat >"$root/etc/apt/sources.list.d/debian.sources" <<EOF
Types: deb
URIs: http://deb.debian.org/debian
Suites: $2 $2-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $2-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap

# The loader reads its menu from here; the rest of it stands outside of the file system.
mkdir -p "$root/boot/grub"

# Logs and caches of the installation.
find "$root/var/log" -type f -delete
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
rm -f "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
rm -f "$root"/etc/passwd- "$root"/etc/shadow- "$root"/etc/group- "$root"/etc/gshadow- "$root"/etc/subuid- "$root"/etc/subgid-
rm -rf "$root"/tmp/* "$root"/var/tmp/* "$root"/run/*

# What the packages' scripts have done need not be done again at the first boot.
touch "$root/etc/.updated" "$root/var/.updated"
