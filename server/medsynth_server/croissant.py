"""Croissant 1.0 (MLCommons 2024): a set's metadata as JSON-LD that data set search engines read."""

import hashlib
from pathlib import Path
from typing import Any, Final

from medsynth_common import __version__
from medsynth_common.set_layout import Layout
from medsynth_server.set_folder import Request

#: The context that the specification gives, section "Croissant Namespaces".
_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_GLOBS: Final[dict[Layout, dict[str, tuple[str, ...]]]] = {
    Layout.BRATS: {
        "images": ("*/*-t1n.nii.gz", "*/*-t1c.nii.gz", "*/*-t2w.nii.gz", "*/*-t2f.nii.gz"),
        "tumour-maps": ("*/*-seg.nii.gz",),
        "anatomy-maps": ("*/*-anatomy.nii.gz",),
    },
    Layout.BIDS: {
        "images": ("sub-*/anat/*.nii.gz",),
        "tumour-maps": ("derivatives/medsynth/sub-*/anat/*_desc-tumour_dseg.nii.gz",),
        "anatomy-maps": ("derivatives/medsynth/sub-*/anat/*_desc-anatomy_dseg.nii.gz",),
    },
    Layout.MSD: {
        "images": ("imagesTr/*.nii.gz",),
        "tumour-maps": ("labelsTr/*.nii.gz",),
        "anatomy-maps": ("anatomyTr/*.nii.gz",),
    },
}
_FIELDS: Final = {
    "name": "The volume.",
    "style": "The training site whose scanner it imitates.",
    "labels": "The public label map it was painted from.",
}
#: Croissant wants an address of whoever publishes; the set itself names no place.
_HOME: Final = "https://pypi.org/project/medsynth-federated/"


def croissant(request: Request, *, name: str, description: str, records: Path) -> dict[str, Any]:
    """Describe a finished set.

    Args:
        request: what was asked for.
        name: of the set, as a title.
        description: in plain words, with its privacy guarantee.
        records: `volumes.jsonl`, which lists the volumes.

    """
    with records.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    listing = {
        "@type": "cr:FileObject",
        "@id": records.name,
        "name": records.name,
        "contentUrl": records.name,
        "encodingFormat": "application/jsonlines",
        "sha256": digest,
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": request.licence,
        "url": _HOME,
        "creator": {"@type": "sc:Organization", "name": f"medsynth {__version__}", "url": _HOME},
        "datePublished": request.date,
        "version": "1.0.0",
        "keywords": ["synthetic", "brain MRI", "segmentation", "differential privacy"],
        "isLiveDataset": False,
        "citeAs": f"{name}. medsynth {__version__}, seed {request.seed}, {request.date}.",
        "distribution": [listing, *_file_sets(request.layout)],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "volumes",
                "name": "volumes",
                "description": "One record for every synthetic volume.",
                "key": {"@id": "volumes/name"},
                "field": [_field(records.name, key, text) for key, text in _FIELDS.items()],
            }
        ],
    }


def _file_sets(layout: Layout) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": f"The {name.replace('-', ' ')}, gzipped NIfTI-1.",
            "encodingFormat": "application/x-nifti",
            "includes": list(globs) if len(globs) > 1 else globs[0],
        }
        for name, globs in _GLOBS[layout].items()
    ]


def _field(records: str, key: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"volumes/{key}",
        "name": key,
        "description": text,
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": records}, "extract": {"column": key}},
    }
