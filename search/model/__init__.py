"""Networks: timm backbones, heads, losses, inference."""
