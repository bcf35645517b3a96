"""Reads native histograms from the protobuf exposition format. Other metrics are skipped."""

import struct


def parse_fields(data):
    """Yields number and value of each field of a message. A value is an integer, or bytes."""
    at = 0

    def parse_varint():
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
        key = parse_varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, parse_varint()
            continue
        size = {1: 8, 5: 4}.get(wire_type) or parse_varint()
        yield key >> 3, data[at : at + size]
        at += size


def parse_families(data):
    """Yields name and metrics of each metric family of a delimited exposition."""
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
        message = list(parse_fields(data[at : at + size]))
        at += size
        name = next(value for number, value in message if number == 1).decode()
        yield name, [value for number, value in message if number == 4]


def decode_zigzag(value):
    """Returns the signed integer of a zigzag encoding."""
    return (value >> 1) ^ -(value & 1)


def parse_repeated(value):
    """Returns the integers of a repeated field, packed or not."""
    if isinstance(value, int):
        return [value]
    integer, integers, shift = 0, [], 0
    for byte in value:
        integer |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            integers.append(integer)
            integer, shift = 0, 0
    return integers


def read_native_histogram(data, name):
    """Returns the counts of a family's first histogram by upper bound; zeros have the bound 0."""
    metric = next(metrics[0] for family, metrics in parse_families(data) if family == name)
    histogram = next(value for number, value in parse_fields(metric) if number == 7)
    schema, spans, deltas, zeros = 0, [], [], 0
    for number, value in parse_fields(histogram):
        if number == 5:
            schema = decode_zigzag(value)
        elif number == 7:
            zeros = value
        elif number == 8:
            zeros = struct.unpack("<d", value)[0]
        elif number == 12:
            span = dict(parse_fields(value))
            spans.append((decode_zigzag(span.get(1, 0)), span.get(2, 0)))
        elif number == 13:
            deltas += [decode_zigzag(delta) for delta in parse_repeated(value)]
    counts, index, count, remaining = {0.0: zeros}, 0, 0, iter(deltas)
    for offset, length in spans:
        index += offset
        for _ in range(length):
            count += next(remaining)
            counts[2 ** (index / 2**schema)] = count
            index += 1
    return counts


def find_quantile(counts, q):
    """Returns the upper bound of the bucket with the quantile; None without counts."""
    rank, cumulative = q * sum(counts.values()), 0
    for bound in sorted(counts):
        cumulative += counts[bound]
        if counts[bound] and cumulative >= rank:
            return bound
    return None


def subtract_counts(later, earlier):
    """Returns the counts between two scrapes."""
    return {bound: count - earlier.get(bound, 0) for bound, count in later.items()}
