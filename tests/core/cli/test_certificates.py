"""HTTPS: the files are checked before anything is loaded, and then used."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import pytest
from fastapi import FastAPI

from octavo.cli.listen import Served, certificate_of, open_socket
from octavo.cli.serving import _Servers
from octavo.config.schema import Section
from octavo.errors import ConfigError
from octavo.records import ApiRecord


class Options(Section):
    certfile: str | None = None
    keyfile: str | None = None


RECORD = ApiRecord(name="secure", summary="", build=lambda client, options: None, options=Options)


def surface(**options):
    return Served(RECORD, Options(**options))


@pytest.fixture
def pem(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([*words, *more], check=True, capture_output=True)
    return cert, key


def test_none_unless_asked_for():
    assert certificate_of([surface()]) is None


def test_bad_files(tmp_path):
    text = tmp_path / "text"
    text.write_text("no certificate")
    for options in ({"certfile": str(tmp_path / "none")}, {"certfile": str(text)}, {"keyfile": str(text)}):
        with pytest.raises(ConfigError):
            certificate_of([surface(**options)])


def test_surfaces_on_one_address_agree(pem):
    with pytest.raises(ConfigError, match="agree"):
        certificate_of([surface(certfile=pem[0], keyfile=pem[1]), surface()])


def test_served(pem):
    certificate = certificate_of([surface(certfile=pem[0], keyfile=pem[1])])
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    async def scenario() -> bytes:
        listener, servers = open_socket("127.0.0.1", 0), _Servers()
        await servers.start(app, listener, certificate)
        trusted = ssl.create_default_context(cafile=pem[0])
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=trusted)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await servers.stop()
        listener.close()
        return answer

    assert asyncio.run(scenario()).endswith(b'"hello"')
