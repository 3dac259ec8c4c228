# Finishes the bare root file system in "$1". Part of the recipe: a change makes a new one.
set -eu
root=$1

# What a package would be fetched for stays where apt looks first; the lists stay too.
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --download-only --no-install-recommends install condor

# It is thrown away after the test: nobody waits for its disk.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"

# HTCondor's tools hang where a name server does not answer for the machine's own name.
: >"$root/etc/resolv.conf"
rm -f "$root/etc/hostname"
printf '127.0.0.1 localhost bare\n' >"$root/etc/hosts"
