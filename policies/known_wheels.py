"""Wheels whose files pass the scan by digest. Written by scripts/known_wheels.py; do not edit."""

KNOWN_WHEELS: tuple[dict[str, str], ...] = (
    {
        "name": "filelock",
        "version": "4.2.11",
        "record": "sha256:2403508ac58ea80f51e7b72423442b1e6fdff138c9857882484942980a3200ee",
    },
    {
        "name": "fsspec",
        "version": "2026.9.0",
        "record": "sha256:bda1648fb1cb282b997f76bc06f21bf8698bc2dcea86cc63a2bb2453b55accd3",
    },
    {"name": "jinja2", "version": "3.1.6", "record": "sha256:a878845738de2ee422742137e38282cc59a2fff8ff4f7b664a3cfce0ef3e8eb8"},
    {
        "name": "markupsafe",
        "version": "3.0.4",
        "record": "sha256:e259728481b3d303d4c8772873d24b6a668e965621d31561ba40135e824353f7",
    },
    {"name": "mpmath", "version": "1.3.0", "record": "sha256:a58b9ff2b66e115a5e4015f9cc5c44e67a4567a688de03c6a4058fb4a42c1aae"},
    {"name": "networkx", "version": "3.6.1", "record": "sha256:14aad961670400c9162dafb1b4f8faa86c74f9c2ce91fde8aea160cc43f14f14"},
    {"name": "numpy", "version": "2.4.6", "record": "sha256:f9cd59a9d807f37afb56ade61b9d66a9e3884ac87a05633f8a9b4b14d60efe8f"},
    {
        "name": "safetensors",
        "version": "0.8.0",
        "record": "sha256:f8fccde4d641f4ec9683511028d236fc4cba1bc9388044af0c3543e1f60f1978",
    },
    {
        "name": "setuptools",
        "version": "84.2.1",
        "record": "sha256:f541a83aa44d53d75042f1c3210024694fcd74e04267e35bf3095c4593523b74",
    },
    {"name": "sympy", "version": "1.14.0", "record": "sha256:76a13e5b4a7125162dc70ff8a58604e8fbaa1de4f626a4916498f98f1c844d30"},
    {
        "name": "torch",
        "version": "2.13.0+cpu",
        "record": "sha256:4529e7bb65e187a64e9096757f12746c661e0e4c6efd7b779414a6b1caae8612",
    },
    {
        "name": "typing-extensions",
        "version": "4.16.0",
        "record": "sha256:239d27f65684595a0825767e65807fd9c009c092a4b9b5629f57c5f62010c9aa",
    },
)
