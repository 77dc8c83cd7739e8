#!/usr/bin/env python3
"""Checks the arrows between rooms and the libraries that only some files may see. Prints one line a breach."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# Room -> rooms it may include besides itself. base <- log, config, metrics, exec <- tensor, net, http <- model, text,
# placement (placement <- net) <- services; kernels know base, tensor and exec only.
LEAF = {"common/base"}
LOW = LEAF | {"common/log", "common/config", "common/exec", "common/tensor", "common/http", "common/metrics"}
MID = LOW | {"common/session", "common/net", "common/model", "common/text", "common/placement", "proto"}
ROOMS = {
    "common/base": set(),
    "common/log": LEAF,
    "common/config": LEAF | {"common/log"},
    "common/exec": LEAF | {"common/log"},
    "common/http": LEAF | {"common/log"},
    "common/metrics": LEAF | {"common/log", "common/config", "common/http"},
    "common/tensor": LEAF | {"common/log"},
    "common/session": LEAF | {"proto"},
    "common/net": LOW | {"common/placement", "proto"},
    "common/model": LOW | {"kernels/api"},
    "common/text": LOW,
    "common/placement": LOW | {"common/model"},
    "kernels": LEAF | {"common/tensor", "common/exec"},
    "services/gateway": MID | {"kernels/api"},
    "services/attention": MID | {"kernels"},
    "services/expert": MID | {"kernels"},
    "services/controller": MID,
}
# Header prefix -> where it may be included. Never in a header, except where the value says so.
LIBRARIES = {
    "CLI/": ["common/config/options.cc"],
    "boost/": ["common/http/", "services/cli/http_client.cc", "tests/"],
    "grpcpp/": ["common/net/", "services/", "tests/", "kernels/bench/"],
    "nlohmann/": ["common/", "services/", "tests/", "kernels/"],
}
# Headers that only their own room includes.
HEADER_ALLOWED = {
    "nlohmann/": ["common/model/json_text.h", "services/gateway/json_in.h"],
    "grpcpp/": ["common/net/grpc_frames.h"],
}


def room_of(path):
    for room in sorted(ROOMS, key=len, reverse=True):
        if path.startswith(room + "/"):
            return room
    return None


def target_room(include):
    parts = include.split("/")
    if parts[0] in ("common", "services") and len(parts) > 2:
        return "/".join(parts[:2])
    if parts[0] == "kernels" and len(parts) > 2:
        return "/".join(parts[:2])
    if parts[0] in ("proto", "consilium") and include.endswith(".h") and ".pb" in include:
        return "proto"
    return None


def breaches(path, text):
    room = room_of(path)
    is_test = path.endswith(("_test.cc", "_bench.cc", "_fixture.h")) or "/testing_" in path or "/testing/" in path or path.startswith("tests/")
    is_core = re.search(r"_core\.(h|cc)$", path) is not None
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        include = match.group(2)
        where = f"{path}:{number}: "
        for prefix, allowed in LIBRARIES.items():
            if not include.startswith(prefix):
                continue
            if not is_test and not any(path.startswith(a) for a in allowed):
                yield where + f"<{include}> may be seen by {', '.join(allowed)} only"
            if path.endswith(".h") and not is_test and not any(path.startswith(a) for a in HEADER_ALLOWED.get(prefix, [])):
                yield where + f"<{include}> must not be in a header"
        if is_core and include in ("thread", "mutex", "condition_variable", "future"):
            yield where + f"<{include}>: a core has no threads and no locks"
        if is_core and include.startswith(("grpc", "boost/")):
            yield where + f"<{include}>: a core knows no network"
        target = target_room(include)
        if room is None or target is None or is_test:
            continue
        if target == room or target.startswith(room + "/"):
            continue
        if target.startswith("services/"):
            yield where + f"{room} must not include {target}"
        elif not any(target == a or target.startswith(a + "/") for a in ROOMS[room]):
            yield where + f"{room} must not include {target}"


def main():
    found = []
    for top in ("common", "services", "kernels", "tests"):
        for file in sorted((ROOT / top).rglob("*")):
            if file.suffix in (".h", ".cc"):
                path = file.relative_to(ROOT).as_posix()
                found += breaches(path, file.read_text(encoding="utf-8"))
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
