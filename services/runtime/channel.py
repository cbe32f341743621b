"""How clients reach our own services: addresses, and whether they speak TLS."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from services.errors import InvalidInputError
from services.runtime.settings import Settings


def format_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def trusted_certificate(settings: Settings) -> grpc.ChannelCredentials | None:
    """What a client trusts: the certificate that the settings name; None where they name none.

    Raises
    ------
    InvalidInputError
        The certificate cannot be read.
    """
    if settings.tls_cert_file is None:
        return None
    try:
        certificate = settings.tls_cert_file.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"MKF_TLS_CERT_FILE cannot be read: {error}") from error
    return grpc.ssl_channel_credentials(certificate)


def open_channel(
    address: str, settings: Settings, options: Sequence[tuple[str, object]] = ()
) -> grpc.Channel:
    """A channel to `host:port`, past any proxy: the service is on this machine or the next one.

    Parameters
    ----------
    options
        gRPC's, beside that.

    Raises
    ------
    InvalidInputError
        The certificate cannot be read.
    """
    options = [("grpc.enable_http_proxy", 0), *options]
    if (credentials := trusted_certificate(settings)) is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)
