//! Startup and authentication of a walsender connection (PostgreSQL documentation, sections 55.2.1 and 55.3).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the protocol has many messages, and every one that is not named is as wrong here as the next"
)]

use std::collections::HashMap;
use std::io;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use tokio_postgres::config::ChannelBinding;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::super::connect::{Login, LoginError, Reported, Route, STARTUP_SETTINGS, WAL_SETTINGS, major};
use super::super::link::Link;
use super::super::wire::Wire;
use super::Connection;
use super::channel::Channel;
use super::error::server_error;

/// Logs in for replication.
pub(in crate::postgres) struct WalLogin<'a> {
    pub(in crate::postgres) link: &'a Link,
    pub(in crate::postgres) application: &'a str,
    pub(in crate::postgres) label: &'a str,
}

impl Login for WalLogin<'_> {
    type Made = Connection;

    async fn login(&self, wire: Wire, _route: &Route) -> Result<(Connection, Reported), LoginError> {
        let end_point = wire.end_point();
        let mut channel = Channel::new(wire, self.label);
        self.startup(&mut channel).await?;
        self.authenticate(&mut channel, end_point).await?;
        let parameters = parameters(&mut channel).await?;
        let parameter = |name: &str| parameters.get(name).map(String::as_str);
        let server_major = parameter("server_version").map_or(0, major);
        Ok((Connection { channel, server_major }, Reported::from_parameters(parameter)))
    }
}

impl WalLogin<'_> {
    async fn startup(&self, channel: &mut Channel) -> Result<(), LoginError> {
        let mut parameters = vec![
            ("user", self.link.user.as_str()),
            ("database", self.link.database.as_str()),
            ("replication", "database"),
            ("application_name", self.application),
        ];
        parameters.extend(STARTUP_SETTINGS.iter().chain(WAL_SETTINGS));
        if let Some(options) = &self.link.options {
            parameters.push(("options", options));
        }
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message).map_err(LoginError::Lost)?;
        channel.send(&message).await.map_err(LoginError::Lost)
    }

    /// Answers whatever the server asks for, up to its consent.
    async fn authenticate(
        &self,
        channel: &mut Channel,
        end_point: Option<Vec<u8>>,
    ) -> Result<(), LoginError> {
        let bound = match next(channel).await? {
            Message::AuthenticationOk => return self.binding_met(false),
            Message::AuthenticationCleartextPassword => {
                self.binding_met(false)?;
                self.send_password(channel, self.password()?).await?;
                false
            }
            Message::AuthenticationMd5Password(body) => {
                self.binding_met(false)?;
                let hash = md5_hash(self.link.user.as_bytes(), self.password()?, body.salt());
                self.send_password(channel, hash.as_bytes()).await?;
                false
            }
            Message::AuthenticationSasl(body) => self.scram(channel, &body, end_point).await?,
            Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                return Err(LoginError::Method("Kerberos, GSSAPI or SSPI".to_owned()));
            }
            _ => return Err(unexpected("a message that is no part of a login")),
        };
        self.binding_met(bound)?;
        match next(channel).await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(unexpected("a message instead of the end of the login")),
        }
    }

    async fn send_password(&self, channel: &mut Channel, password: &[u8]) -> Result<(), LoginError> {
        let mut message = BytesMut::new();
        frontend::password_message(password, &mut message).map_err(LoginError::Lost)?;
        channel.send(&message).await.map_err(LoginError::Lost)
    }

    /// SCRAM-SHA-256, bound to the TLS session where both sides can (RFC 5802, RFC 7677). Returns whether it was.
    async fn scram(
        &self,
        channel: &mut Channel,
        offer: &AuthenticationSaslBody,
        end_point: Option<Vec<u8>>,
    ) -> Result<bool, LoginError> {
        let offered: Vec<&str> = offer.mechanisms().collect().map_err(LoginError::Lost)?;
        let end_point = end_point.filter(|_| self.link.channel_binding != ChannelBinding::Disable);
        let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS);
        let (mechanism, binding, bound) = match end_point {
            Some(end_point) if plus => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point), true)
            }
            // "We could, but the server did not offer": a server that did offer knows that somebody sits between.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
        };
        if !offered.contains(&mechanism) {
            return Err(LoginError::Method(offered.join(" or ")));
        }
        let mut scram = ScramSha256::new(self.password()?, binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message)
            .map_err(LoginError::Lost)?;
        channel.send(&message).await.map_err(LoginError::Lost)?;
        let Message::AuthenticationSaslContinue(body) = next(channel).await? else {
            return Err(unexpected("a message instead of the second step of SCRAM"));
        };
        scram.update(body.data()).map_err(scram_failed)?;
        message.clear();
        frontend::sasl_response(scram.message(), &mut message).map_err(LoginError::Lost)?;
        channel.send(&message).await.map_err(LoginError::Lost)?;
        let Message::AuthenticationSaslFinal(body) = next(channel).await? else {
            return Err(unexpected("a message instead of the last step of SCRAM"));
        };
        scram.finish(body.data()).map_err(scram_failed)?;
        Ok(bound)
    }

    fn password(&self) -> Result<&[u8], LoginError> {
        let password = self.link.password.as_ref().ok_or(LoginError::NoPassword)?;
        Ok(password.expose_secret().as_bytes())
    }

    /// `channel_binding=require` wants proof that nobody sits between.
    fn binding_met(&self, bound: bool) -> Result<(), LoginError> {
        if bound || self.link.channel_binding != ChannelBinding::Require {
            return Ok(());
        }
        Err(LoginError::Method("a login without the channel binding that the link requires".to_owned()))
    }
}

/// The settings that the server reports, up to its first ReadyForQuery.
async fn parameters(channel: &mut Channel) -> Result<HashMap<String, String>, LoginError> {
    let mut parameters = HashMap::new();
    loop {
        match next(channel).await? {
            Message::ParameterStatus(body) => {
                let (Ok(name), Ok(value)) = (body.name(), body.value()) else { continue };
                parameters.insert(name.to_owned(), value.to_owned());
            }
            Message::ReadyForQuery(_) => return Ok(parameters),
            Message::BackendKeyData(_) => {}
            _ => return Err(unexpected("a message that is no part of a login")),
        }
    }
}

/// The next message that is neither a notice nor an error.
async fn next(channel: &mut Channel) -> Result<Message, LoginError> {
    loop {
        match channel.message().await.map_err(lost)? {
            Message::NoticeResponse(_) => {}
            Message::ErrorResponse(body) => {
                let (sqlstate, message) = server_error(&body);
                return Err(LoginError::Server { sqlstate, message });
            }
            message => return Ok(message),
        }
    }
}

fn lost(error: io::Error) -> LoginError {
    if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) {
        return unexpected("a malformed message");
    }
    LoginError::Lost(error)
}

fn unexpected(fact: &str) -> LoginError {
    LoginError::Protocol(fact.to_owned())
}

/// The server could not prove that it knows the password.
fn scram_failed(_error: io::Error) -> LoginError {
    unexpected("its part of SCRAM does not fit the password")
}
