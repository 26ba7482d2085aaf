"""The table of an export's formats; what is written and compared is tested with the command."""

from pipeline.commands import export_formats


def test_lines_of_the_table_have_the_width_of_its_header():
    row = export_formats.Export(
        "litert_int8", "dynamic range", "x", True, 0.1234, 0.1, 0.99, 0.9, 2.5e6, 1.25, 100.5, 1000
    )
    assert (
        export_formats._line(row).index("yes") == export_formats.HEADER.index("kept")
        and len(export_formats._line(row)) <= 120
    )
    assert export_formats._line(export_formats.Export("onnx", "float32", "x", False)).split() == [
        "onnx",
        "no,",
        "float32",
    ]
