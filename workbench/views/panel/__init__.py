"""The panel in which many variants answer side by side; gradio is told to send no statistics before it is imported."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
