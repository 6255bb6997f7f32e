"""The output gate's codes in words: what is wrong with a file, and what to do about it."""

from policies.gate import Reason

KINDS = {
    "dicom": "a DICOM file",
    "fhir": "FHIR resources (a bundle or ndjson)",
    "apple-health": "an Apple Health export",
    "vcf": "a variant call file",
    "csv": "a table of text",
    "ndjson": "lines of JSON",
    "pickle": "a Python pickle",
    "zip": "a ZIP archive (PyTorch and NumPy archives among them)",
    "tar": "a tar archive",
    "compressed": "a compressed stream",
    "png": "a PNG image",
    "jpeg": "a JPEG image",
    "image": "an image",
    "onnx": "an ONNX model",
    "hdf5": "an HDF5 file",
    "numpy": "a NumPy file",
    "database": "a database or columnar table",
    "gguf": "a GGUF model",
    "markup": "HTML, SVG or XML",
    "pdf": "a PDF document",
    "nifti": "a NIfTI volume",
    "executable": "a program",
}

FOLDER_REASONS = {
    "output-folder": Reason(
        "job", "The output folder is not a plain folder that can be read.", "Write into /out, and into nothing else."
    ),
    "output-missing": Reason("job", "One of the two output files is missing.", "Write weights.safetensors and metrics.json."),
    "output-extra-file": Reason(
        "job", "There is a file that was not declared.", "Write weights.safetensors and metrics.json only."
    ),
    "output-dot-file": Reason("job", "There is a hidden file.", "Write weights.safetensors and metrics.json only."),
    "output-symlink": Reason("job", "There is a symbolic link.", "Write plain files."),
    "output-hard-link": Reason("job", "A file has a second name.", "Write plain files with one name each."),
    "output-directory": Reason("job", "There is a folder in the output folder.", "Write the two files directly into /out."),
    "output-special-file": Reason("job", "There is a pipe, a socket or a device.", "Write plain files."),
    "output-sparse": Reason("job", "A file has holes.", "Write the file whole, from start to end."),
    "output-xattr": Reason(
        "job", "A file carries extended attributes or an access list.", "Write plain files without attributes."
    ),
    "output-changed": Reason(
        "node", "A file changed while it was read.", "Make sure that the sandbox is gone; open a new attempt."
    ),
    "output-unreadable": Reason("node", "A file could not be read.", "Look at the disk; open a new attempt."),
}

KINDS_REASONS = {
    f"output-is-{kind}": Reason(
        "job", f"A file holds {what}.", "Only declared tensors and numbers may leave, as safetensors and JSON."
    )
    for kind, what in KINDS.items()
}

SIZE_REASONS = {
    "output-too-large": Reason("job", "The files are larger than this site lets out.", "Declare and write a smaller model."),
    "output-over-manifest": Reason(
        "job", "The files are larger than the dataset's manifest lets out.", "Declare a smaller model."
    ),
    "output-too-many-parameters": Reason(
        "job", "The model has more parameters than this site lets out.", "Declare a smaller model."
    ),
}

WEIGHTS_REASONS = {
    "weights-absent": Reason("job", "There are no weights to read.", "Write weights.safetensors."),
    "weights-header-size": Reason(
        "job", "The weights file's header length is wrong or too large.", "Write it with the safetensors library."
    ),
    "weights-header-json": Reason(
        "job", "The weights file's header is not strict JSON.", "Write it with the safetensors library."
    ),
    "weights-metadata": Reason("job", "The weights file carries metadata.", "Save without a metadata argument."),
    "weights-header-fields": Reason(
        "job", "A tensor's entry has other fields than it may.", "Write it with the safetensors library."
    ),
    "weights-offsets": Reason(
        "job", "Tensors overlap, leave gaps, or stand out of order.", "Write it with the safetensors library."
    ),
    "weights-length": Reason("job", "The file is longer or shorter than its tensors.", "Write nothing after the tensors."),
    "weights-names": Reason("job", "The tensors are not those that were declared.", "Save exactly the declared tensors."),
    "weights-shapes": Reason("job", "A tensor has another shape than declared.", "Save exactly the declared shapes."),
    "weights-dtypes": Reason("job", "A tensor has another number format than declared.", "Save exactly the declared formats."),
    "weights-not-finite": Reason("job", "A weight is NaN or infinite.", "Save finite weights."),
}

METRICS_REASONS = {
    "metrics-absent": Reason("job", "There are no metrics to read.", "Write metrics.json, {} when none is declared."),
    "metrics-malformed": Reason("job", "The metrics file is not one strict JSON object.", 'Write {"name": number}.'),
    "metrics-names": Reason("job", "The metrics are not those that were declared.", "Write exactly the declared metrics."),
    "metrics-not-a-number": Reason("job", "A metric is not a plain number.", "No text, lists, true or false, null."),
    "metrics-out-of-range": Reason("job", "A metric is outside its declared range.", "Declare the range that the metric has."),
    "metrics-name-not-allowed": Reason(
        "job",
        "A metric's name is not one that this site lets out.",
        "Use names made of the site's words, such as validation-accuracy; counts, minima and quantiles do not leave.",
    ),
    "metrics-too-many": Reason("job", "More metrics than may leave.", "Declare fewer."),
    "metrics-digits": Reason("job", "A metric is declared with more digits than may leave.", "Declare fewer digits."),
}
