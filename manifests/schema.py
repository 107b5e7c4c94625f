"""The columns of every table on disk, with their units. Version 2 of the contract.

Four tables share these columns, each a superset in meaning of the one before:

``source``    one row per source image, whatever happened to it at ingest
``restored``  one row per source image: was it run through the restorer, and what came out
``view``      one row per source image: what a policy decided, and where the bytes of the decision lie
``cleaned``   one row per source image: all of the above, for the product
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 2

#: What can become of a sample. At ingest and restore the status is provisional; ``select`` decides.
STATUSES: Final = ("restored", "kept_original", "rejected", "failed")


def _field(name: str, kind: pa.DataType, doc: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


IDENTITY = [
    _field("key", pa.string(), "WebDataset key: unique in the run, no dots, ASCII", nullable=False),
    _field("shard", pa.string(), "shard name without suffix, the same in every stage", nullable=False),
    _field("source_name", pa.string(), "path of the image inside the source", nullable=False),
    _field("status", pa.string(), "restored | kept_original | rejected | failed", nullable=False),
    _field("reason", pa.string(), "why the status is what it is; a short stable token, optionally ': detail'"),
]

ORIGIN = [
    _field("label", pa.int64(), "class index"),
    _field("class_name", pa.string(), "class name: folder name or wnid"),
    _field("group", pa.string(), "samples of one group come from one photograph"),
    _field("split", pa.string(), "train | validation: the policy's where it holds samples out, else the dataset's own"),
    _field("metadata", pa.string(), "JSON object that the source gave with this image"),
    _field("source_bytes", pa.int64(), "length of the source file, bytes"),
    _field("source_sha256", pa.string(), "SHA-256 of the source file, hex"),
    _field("format", pa.string(), "container found in the bytes: JPEG, PNG, WEBP, ..."),
    _field("mode", pa.string(), "pixel mode as stored, before conversion to RGB"),
    _field("notes", pa.list_(pa.string()), "what decoding had to handle: exif_rotated, cmyk, alpha_dropped, ..."),
    _field("upscale_factor", pa.float32(), "known from the dataset's metadata: above 1, the image was enlarged"),
    _field("phash", pa.binary(32), "256-bit perceptual hash (signs of the DCT) of the decoded image"),
]

LOCATION = [
    _field("ext", pa.string(), "extension of the image member in the tar, without a dot"),
    _field("width", pa.int32(), "pixels, after EXIF orientation"),
    _field("height", pa.int32(), "pixels, after EXIF orientation"),
    _field("offset", pa.int64(), "first byte of the image's data in the tar of this row's stage"),
    _field("nbytes", pa.int64(), "length of the image's data in that tar, bytes"),
    _field("output_sha256", pa.string(), "SHA-256 of the image's data in that tar, hex"),
]

#: No-reference measurements of one image. Each is taken of the source, and again (``after_``) of a restored candidate.
MEASUREMENTS = [
    _field("sharpness", pa.float32(), "edge acutance, 1/px; higher is sharper"),
    _field("noise_sigma", pa.float32(), "standard deviation of the noise, in 1/255 of full scale"),
    _field("jpeg_quality", pa.float32(), "1-100 from the quantisation tables; null where the file has none"),
    _field("blockiness", pa.float32(), "8x8 block edge strength seen in the pixels, no unit; higher is worse"),
    _field("effective_resolution", pa.float32(), "0-1: share of the pixel grid's bandwidth that holds detail"),
    _field("exposure", pa.float32(), "mean luma, 0-1"),
    _field("clipped", pa.float32(), "share of channel values at black or white, 0-1"),
    _field("saturation", pa.float32(), "mean HSV saturation, 0-1"),
]

#: How far a candidate is from its source. ``pipelines/changes.py`` says what each is for; null where an instrument is
#: missing (``run.json`` says which were there) or the image is too small for it.
CHANGES = [
    _field("psnr_source", pa.float32(), "PSNR between candidate and source, dB; not finite if they are equal"),
    _field("ssim_source", pa.float32(), "SSIM of their luma, Gaussian window of sigma 1.5 px; 1: equal"),
    _field("lpips_source", pa.float32(), "LPIPS v0.1 (AlexNet), at no more than 256 px a side; 0: equal"),
    _field("consistency", pa.float32(), "PSNR between averages over 8x8 pixels of candidate and source, dB"),
    _field(
        "redegradation",
        pa.float32(),
        "PSNR to the source of the candidate degraded as the source may have been, in the worst place, dB",
    ),
    _field("colour_drift", pa.float32(), "mean change of a*b* (CIELAB) over cells of 8x8 pixels; 0: none"),
]

#: Without a reference, by a model of pristine photographs; null without its file, and under two blocks of 96 x 96 px.
NATURALNESS = [
    _field("niqe", pa.float32(), "NIQE of the candidate's source, 0 and up; of good photographs about 2-5"),
    _field("after_niqe", pa.float32(), "NIQE of the candidate"),
]

#: The largest face of the source, and what became of it in the candidate; null without a face model.
FACES = [
    _field("face_model", pa.string(), "which model looked: facexlib | mobilefacenet | dlib; null: none did"),
    _field("faces", pa.int32(), "number of faces found in the source"),
    _field("faces_after", pa.int32(), "number of faces found in the candidate"),
    _field("face_box", pa.list_(pa.float32(), 4), "left, top, right, bottom of the source's largest face, pixels"),
    _field(
        "face_landmarks",
        pa.list_(pa.float32(), 10),
        "x and y of its left eye, right eye, nose, left and right corner of the mouth as the viewer sees them, pixels",
    ),
    _field("face_yaw", pa.float32(), "degrees, coarse: above 0, it is turned to the image's right"),
    _field("face_pitch", pa.float32(), "degrees, coarse: above 0, it looks up"),
    _field("face_roll", pa.float32(), "degrees: above 0, it is turned clockwise"),
    _field("identity_cosine", pa.float32(), "cosine of the face's embeddings in source and candidate; 1: the same"),
    _field(
        "same_person", pa.float32(), "cosine above which that model's embeddings are of one person, likelier than not"
    ),
    _field(
        "landmark_error",
        pa.float32(),
        "mean distance of the five landmarks found in the candidate from the source's, in units of eye distance",
    ),
]

RESTORATION = [
    _field("severity", pa.float32(), "damage as the severity network of IDM reads it: 0 clean, 1 worst"),
    _field("severity_after", pa.float32(), "the same, read again on the candidate"),
    _field("passes", pa.int32(), "passes of the intrinsic iteration that were used; 0 when only looked at"),
    _field("evaluations", pa.int32(), "network evaluations spent on each pixel of this sample"),
    _field(
        "stop",
        pa.string(),
        "why it ended: clean | settled | passes | severity_rose | inconsistent | identity | declined",
    ),
    *CHANGES,
    *NATURALNESS,
    *FACES,
    _field("truth_psnr_before", pa.float32(), "PSNR of the source to the known truth, dB; infinite if equal"),
    _field("truth_psnr_after", pa.float32(), "PSNR of the candidate to the known truth, dB"),
    *[_field(f"after_{f.name}", f.type, f"{f.name} of the candidate") for f in MEASUREMENTS],
]

DUPLICATES = [
    _field("duplicate_group", pa.string(), "key of the group's first sample; null when the sample is alone"),
    _field("duplicate_kind", pa.string(), "exact (same bytes) | near | mirrored (both by perceptual hash)"),
    _field(
        "duplicate_distance", pa.int32(), "Hamming distance to the group's first sample or its mirror image, of 256"
    ),
]

DECISION = [
    _field("gate", pa.string(), "name of the policy's gate that decided"),
    _field("margin", pa.float32(), "measured value minus the gate's threshold, in the measure's unit"),
    _field("origin", pa.string(), "source | restored: which tar holds the bytes; null: not in the training set"),
]


def _schema(table: str, *groups: list[pa.Field]) -> pa.Schema:
    fields = [f for group in groups for f in group]
    return pa.schema(fields, metadata={"idm_table": table, "idm_schema_version": str(SCHEMA_VERSION)})


_FILE = [
    _field("source_name", pa.string(), "path of the file inside its source", nullable=False),
    _field("container", pa.binary(), "path or URL to open; bytes, for file names need not be UTF-8", nullable=False),
    _field("member", pa.string(), "the file's name in a zip archive"),
    _field("offset", pa.int64(), "first byte of the file in a tar archive, or of its header in a zip"),
    _field("nbytes", pa.int64(), "length of the file, bytes, where the listing knows it"),
    _field("error", pa.string(), "known before reading: the reason why this file cannot be used"),
]

#: The plan of the ingest stage, one row group a shard: where each source image lies. Written once per run.
LISTING = _schema(
    "listing",
    [IDENTITY[0], IDENTITY[1], *_FILE],
    [f for f in ORIGIN if f.name in {"label", "class_name", "group", "split", "upscale_factor", "metadata"}],
    [
        _field("pixel_md5", pa.string(), "MD5 of the decoded RGB pixels that the dataset's publisher states, hex"),
        _field("truth", pa.struct(_FILE), "the pristine image, where it is known"),
    ],
)
SOURCE = _schema("source", IDENTITY, ORIGIN, LOCATION, MEASUREMENTS)
RESTORED = _schema("restored", IDENTITY, LOCATION, RESTORATION)
VIEW = _schema("view", IDENTITY, [ORIGIN[0], ORIGIN[2], ORIGIN[3]], LOCATION, DUPLICATES, DECISION)
CLEANED = _schema("cleaned", IDENTITY, ORIGIN, LOCATION, MEASUREMENTS, RESTORATION, DUPLICATES, DECISION)


def names(fields: list[pa.Field]) -> list[str]:
    """Column names of one of the groups above."""
    return [f.name for f in fields]


def table_from_rows(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    """Build a table from row dicts; an unknown column is an error, a missing one is null.

    Raises:
        KeyError: a row has a column that the schema does not know.
    """
    known = set(schema.names)
    for row in rows:
        unknown = row.keys() - known
        if unknown:
            raise KeyError(f"columns not in the schema: {sorted(unknown)}")
    return pa.Table.from_pylist(rows, schema=schema)
