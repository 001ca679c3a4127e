#!/bin/sh
# project.sh FILE: packs what L1 needs to run the project into an initramfs: this
# machine's Node with its libraries, the build, its production dependencies, and
# the programs of l1/ as JavaScript, laid out as in the checkout (lib being dist).
set -eu
out=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"   # it becomes the root folder of L1
app=$tree/retrovf
node=$(command -v node)

mkdir -p "$app" "$tree/usr/bin" "$tree/lib64"
npx tsc -p test/lab/l1/tsconfig.json --noCheck --outDir "$app"
rm -rf "$app/lib"
cp -R dist "$app/lib"
cp package.json "$app/"
# The addon is built for the machine that the package is built on, as Node is.
npm ls --omit=dev --all --parseable | tail -n +2 | while read -r path; do
    case $path in */node_modules/*) name=${path##*/node_modules/};; *) continue;; esac
    mkdir -p "$(dirname "$app/node_modules/$name")"
    cp -RL "$path" "$app/node_modules/$name"
done
mkdir -p "$app/node_modules/@retrovf"
rm -rf "$app/node_modules/@retrovf/linux-x64-gnu"
cp -R npm/linux-x64-gnu "$app/node_modules/@retrovf/linux-x64-gnu"

cp "$node" "$tree/usr/bin/node"
for library in $(ldd "$node" npm/linux-x64-gnu/*.node | grep -o '/[^ :]*\.so[^ :]*' | sort -u); do
    mkdir -p "$tree$(dirname "$library")"
    cp -L "$library" "$tree$library"
done
(cd "$tree" && find . | cpio -o -H newc --quiet) > "$out.new"
mv "$out.new" "$out"
