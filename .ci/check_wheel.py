"""What a wheel must be: the package alone, pure, and small; and its description readable anywhere.

python .ci/check_wheel.py WHEEL
"""

import email
import re
import sys
import zipfile
from pathlib import Path

path = Path(sys.argv[1])
wheel = zipfile.ZipFile(path)
names = wheel.namelist()
strange = [n for n in names if not n.startswith("keras_yogi/") and ".dist-info/" not in n]
print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1024:.0f} KiB")
if strange or not path.name.endswith("-py3-none-any.whl") or path.stat().st_size > 200 * 1024:
    sys.exit(f"must be pure, under 200 KiB, and hold the package alone. Also there: {strange}")

(metadata_file,) = [n for n in names if n.endswith(".dist-info/METADATA")]
metadata = email.message_from_string(wheel.read(metadata_file).decode("utf-8"))
links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
relative = [link for link in links if not link.startswith("https://")]
if not links or relative:
    sys.exit(f"a package index cannot follow the description's relative links: {relative}")
