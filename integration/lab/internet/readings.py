"""How different back ends would read the same bytes.

`readings(raw)` gives, for each of several parsers found in the wild, the request lines it would see in
what reached the origin. A filter that forwards framing on which they disagree lets requests be smuggled.
"""

import itertools


def split_lines(data, at, bare_lf):
    """The head lines from `at` and the offset behind the empty line; None if it is not complete."""
    lines = []
    while True:
        end = data.find(b"\n", at) if bare_lf else data.find(b"\r\n", at)
        if end < 0:
            return None
        line = data[at:end]
        at = end + (1 if bare_lf else 2)
        if bare_lf and line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            if lines:
                return lines, at
            continue
        lines.append(line)


def fields(lines, fold, space_before_colon):
    """Header fields of a head as one parser sees them."""
    found = []
    for line in lines[1:]:
        if line[:1] in b" \t" and fold and found:
            found[-1][1] += b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            continue
        if name != name.strip():
            if not space_before_colon:
                continue
            name = name.strip()
        found.append([name.lower(), value.strip()])
    return found


def chunked_end(data, at):
    """Offset behind a chunked body that begins at `at`, or None if it is not complete or not chunked."""
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            return None
        try:
            size = int(data[at:end].split(b";")[0].strip() or b"x", 16)
        except ValueError:
            return None
        at = end + 1
        if size == 0:
            while True:
                end = data.find(b"\n", at)
                if end < 0:
                    return None
                line, at = data[at:end].rstrip(b"\r"), end + 1
                if not line:
                    return at
        at += size + 2
        if at > len(data):
            return None


def read(data, te_wins, bare_lf, fold, space_before_colon, last_length, loose_te):
    """Request lines that one parser sees."""
    seen, at = [], 0
    while at < len(data):
        head = split_lines(data, at, bare_lf)
        if head is None:
            rest = data[at:].strip()
            if rest:
                seen.append(b"incomplete: " + rest[:40])
            return seen
        lines, at = head
        seen.append(lines[0])
        names = fields(lines, fold, space_before_colon)
        lengths = [value for name, value in names if name == b"content-length"]
        codings = [value.lower() for name, value in names if name == b"transfer-encoding"]
        chunked = any(c == b"chunked" or loose_te and b"chunked" in c for c in codings)
        if chunked and (te_wins or not lengths):
            end = chunked_end(data, at)
            if end is None:
                return seen
            at = end
        elif lengths:
            value = lengths[-1 if last_length else 0].split(b",")[0].strip()
            if value.isdigit():
                at += int(value)
    return seen


def readings(raw):
    """The set of request-line lists over all parsers: one element means that nobody can disagree."""
    return {
        tuple(read(raw, *choice)) for choice in itertools.product((False, True), repeat=6)
    }
