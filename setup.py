"""Installs moco_tf: momentum contrast and its family in TensorFlow 2 / Keras 3."""

import pathlib

from setuptools import find_packages, setup

EXTRAS = {
    "report": ["matplotlib>=3.9", "jinja2>=3.1", "scikit-learn>=1.5", "scipy>=1.11"],  # moco_tf.report
    "probe": ["scikit-learn>=1.5", "scipy>=1.11"],  # moco_tf.lincls --logistic_regression, fewshot, compare
    "parquet": ["pyarrow>=17"],  # moco_tf.embed --output=x.parquet
    "onnx": ["tf2onnx>=1.17", "onnx>=1.18", "onnxruntime>=1.22"],  # moco_tf.export --format=onnx
}
ALL = sorted({package for packages in EXTRAS.values() for package in packages})

setup(
    name="moco_tf",
    version="0.1.0",
    description="Momentum contrast (MoCo) and its family in TensorFlow 2 / Keras 3",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["self-supervised learning", "contrastive learning", "MoCo", "SimCLR", "TensorFlow", "Keras", "Horovod"],
    packages=[*find_packages(include=["moco_tf", "moco_tf.*"]), "moco_tf.flags"],
    package_dir={"moco_tf.flags": "flags"},  # the recipes
    package_data={"moco_tf.reporting": ["*.html", "*.css", "*.js"], "moco_tf.flags": ["*/*.cfg"]},
    entry_points={"console_scripts": ["moco-tf = moco_tf.__main__:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.12,<4",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # tensorflow-datasets 4.9.10 imports it without asking for it
        "numpy>=1.26",
        "absl-py>=2.1",
        "pillow>=11.3",  # reads the images that TensorFlow does not read exactly; from there on with AVIF
        "tensorboard>=2.20",  # tf.summary.scalar needs it, and TensorFlow does not bring it
        "tqdm>=4.66",
    ],
    extras_require={
        **EXTRAS,
        "faiss": ["faiss-cpu>=1.9"],  # moco_tf.neighbours among many vectors; or faiss-gpu
        "all": ALL,
        "dev": [
            *ALL,
            *(
                "pytest>=8",
                "pytest-timeout>=2.3",
                "pytest-xdist>=3.6",
                "ruff>=0.9",
                "mypy>=1.18",
                "import-linter>=2.5",
                "pre-commit>=4",
                "selenium>=4.20",
            ),
            *("psutil", "pyyaml", "jsonschema>=4", "kubernetes-validate>=1.30"),  # tests of jobs and of their manifest
            *("pdoc>=15", "nbclient>=0.10", "ipykernel>=6.29"),  # of docs/
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
