"""One colour per device, the same in every plot and page."""

import colorsys
import zlib

# Okabe and Ito's colours, told apart with any colour vision, for the devices met most often.
COMMON = {
    "h100-sxm": "#0072B2",
    "h200-sxm": "#56B4E9",
    "b200-sxm": "#332288",
    "a100-sxm-80gb": "#E69F00",
    "l40s": "#009E73",
    "a10g": "#CC79A7",
    "l4": "#999933",
    "mi300x": "#D55E00",
    "rtx-4090": "#882255",
    "gaudi3": "#44AA99",
}
GOOD, BAD, NEUTRAL, FAINT = "#009E73", "#D55E00", "#555555", "#BBBBBB"


def of_device(name: str) -> str:
    """Return the colour of a device as #RRGGBB; a rare one's follows from its name."""
    if name in COMMON:
        return COMMON[name]
    hue = zlib.crc32(name.encode()) / 2**32
    red, green, blue = colorsys.hls_to_rgb(hue, 0.42, 0.55)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
