"""The export stage: timm backbones to ONNX files, measured sections to banks.

Converting a backbone needs torch and timm; building a bank does not.
"""
