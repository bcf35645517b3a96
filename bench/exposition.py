"""Native histograms out of the protobuf exposition: as much of the format as the bench needs."""

import struct


def fields(data):
    """Number and value of each field of a message: an integer, or bytes."""
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield key >> 3, data[at : at + size]
        at += size


def families(data):
    """Name and metrics of each family of a delimited exposition."""
    at = 0
    while at < len(data):
        size, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        message = list(fields(data[at : at + size]))
        at += size
        name = next(value for number, value in message if number == 1).decode()
        yield name, [value for number, value in message if number == 4]


def signed(value):
    """Zigzag."""
    return (value >> 1) ^ -(value & 1)


def varints(value):
    """A repeated integer, packed or not."""
    if isinstance(value, int):
        return [value]
    wrapped, found, shift = 0, [], 0
    for byte in value:
        wrapped |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(wrapped)
            wrapped, shift = 0, 0
    return found


def native_histogram(data, name):
    """Counts by upper bound of a family's first histogram; zeros are at bound 0."""
    metric = next(metrics[0] for found, metrics in families(data) if found == name)
    histogram = next(value for number, value in fields(metric) if number == 7)
    schema, spans, deltas, zeros = 0, [], [], 0
    for number, value in fields(histogram):
        if number == 5:
            schema = signed(value)
        elif number == 7:
            zeros = value
        elif number == 8:
            zeros = struct.unpack("<d", value)[0]
        elif number == 12:
            span = dict(fields(value))
            spans.append((signed(span.get(1, 0)), span.get(2, 0)))
        elif number == 13:
            deltas += [signed(delta) for delta in varints(value)]
    counts, index, count, rest = {0.0: zeros}, 0, 0, iter(deltas)
    for offset, length in spans:
        index += offset
        for _ in range(length):
            count += next(rest)
            counts[2 ** (index / 2**schema)] = count
            index += 1
    return counts


def quantile(counts, q):
    """The upper bound of the bucket that holds the quantile; None without counts."""
    wanted, seen = q * sum(counts.values()), 0
    for bound in sorted(counts):
        seen += counts[bound]
        if counts[bound] and seen >= wanted:
            return bound
    return None


def between(later, earlier):
    """The counts that came between two looks."""
    return {bound: count - earlier.get(bound, 0) for bound, count in later.items()}
