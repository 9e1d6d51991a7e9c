"""The losses that µScaling published (arXiv 2304.06875): 6-layer GPT-2 models, 20,000 steps, one data."""

CSV = """\
width,params_millions,loss
128,8.53,3.9181
256,21.56,3.6054
384,39.09,3.4431
512,61.12,3.3542
640,87.65,3.2902
768,118.68,3.2478
896,154.21,3.2240
1024,194.24,3.1797
2048,676.48,3.0854
3072,1446.72,3.0425
"""
MILLIONS, LOSSES = zip(*(map(float, line.split(",")[1:]) for line in CSV.splitlines()[1:]), strict=True)
