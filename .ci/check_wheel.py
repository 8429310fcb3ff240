"""What a wheel must be: the package alone, pure, and small.

python .ci/check_wheel.py WHEEL
"""

import sys
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
names = zipfile.ZipFile(path).namelist()
strange = [n for n in names if not n.startswith("keras_yogi/") and ".dist-info/" not in n]
print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1024:.0f} KiB")
if strange or not path.name.endswith("-py3-none-any.whl") or path.stat().st_size > 200 * 1024:
    sys.exit(f"must be pure, under 200 KiB, and hold the package alone. Also there: {strange}")
