"""Synthetic demo data: stained sections with expression that follows what the image shows.

Nothing here is measured. It exercises the whole path from sections to predictions where real data may not be
shipped.
"""

from stinfer_export.demo.write import DemoData, write_demo_data

__all__ = ["DemoData", "write_demo_data"]
