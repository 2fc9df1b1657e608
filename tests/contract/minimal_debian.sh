# Unpack a bundle in a Debian without Python, make everything read-only, and run it as another user.
# Called by test_bundle_proof.py in namespaces of its own: no network but lo, its own mounts and processes.
# sh minimal_debian.sh ROOT ARCHIVE DATA OUT PLACE USER:GROUP
set -eu
root=$1 archive=$2 data=$3 out=$4 place=$5 user=$6

mkdir -p "$root/data" "$root/out" "$root$place"
mount --bind "$root" "$root"
touch "$root/bundle.tar.gz"
mount --bind "$archive" "$root/bundle.tar.gz"
mount --bind "$data" "$root/data"
mount --bind "$out" "$root/out"
mount -t tmpfs none "$root$place"
mount -t proc none "$root/proc"
chown "$user" "$root$place" "$out"

# Without HOME, without a language: an environment of nothing but the system's own programs.
as_user() { chroot --userspec="$user" "$root" env -i PATH=/usr/bin:/bin "$@"; }
here() {
    echo "\$ $*"
    as_user sh -c 'cd /out && exec "$@"' sh "$@"
}

echo "== what there is"
as_user sh -c 'echo "Debian $(cat /etc/debian_version), $(ldd --version | head -n 1), user $(id -u)"'
as_user sh -c 'for name in python3 python perl; do command -v $name || echo "no $name"; done'
sed 1,2d /proc/net/dev

echo "== unpack"
name=$(basename "$archive" .tar.gz)
here tar xzf /bundle.tar.gz -C "$place"
mount -o remount,ro "$root$place"
mount -o remount,ro,bind "$root/data"
mount -o remount,ro,bind "$root"
program="$place/$name"
as_user sh -c 'cd "$1" && sha256sum --check --quiet SHA256SUMS && echo "every sum fits"' sh "$program"
as_user touch "$program/new" || true

bank="$program/banks/bank.h5"
echo "== doctor"
here "$program/stinfer" doctor --bank "$bank"
echo "== verify"
here "$program/stinfer" bank verify "$bank"
echo "== run"
here "$program/stinfer-run" /data/slide.jpg --bank "$bank" --mpp 0.69 --spots /data/spots.tsv \
    --out spots.h5ad
here "$program/stinfer-run" "/data/Schnitt Ä 1.svs" --bank "$bank" --pitch-um 50 \
    --out grid.h5ad --png ERBB2 --quiet
here "$program/stinfer-run" /data/zstd.tif --bank "$bank" --mpp 0.5 --genes ERBB2 \
    --out tiff.h5ad --ome-tiff tiff.ome.tif --quiet
here ls -l
