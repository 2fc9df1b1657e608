#!/bin/sh
# Install stInfer from this folder, without a network:  sh install.sh FOLDER
# It looks for Python $python; another is taken with  PYTHON=/path/to/python sh install.sh FOLDER
set -eu
here=$$(CDPATH= cd -- "$$(dirname -- "$$0")" && pwd)
for python in "$${PYTHON:-}" python$python python3 python; do
    if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != ($python_tuple))' 2>/dev/null; then
        exec "$$python" -I "$$here/install.py" "$$@"
    fi
done
echo "Error: Python $python is not here. Set PYTHON to where it is." >&2
exit 1
