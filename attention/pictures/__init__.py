"""Pictures: drawings as SVG."""
