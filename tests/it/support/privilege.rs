//! A split whose links may do what they need and no more: an owner of the shop who is nobody's login, an administrator
//! who is a member of it and owns nothing, and a role for each link.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::cluster::Pair;
use super::split::Split;

const SHOP: &str = "
CREATE ROLE retail_owner NOLOGIN; CREATE ROLE retail_app LOGIN;
CREATE ROLE shop_admin LOGIN; GRANT retail_owner TO shop_admin; GRANT CREATE ON DATABASE monolith TO shop_admin;
CREATE ROLE shop_read LOGIN REPLICATION; CREATE ROLE strangler_apply LOGIN;
CREATE SCHEMA logs AUTHORIZATION retail_owner; GRANT USAGE ON SCHEMA logs TO shop_read;
GRANT CREATE ON SCHEMA public TO retail_owner;";

const SERVICE: &str = "
CREATE ROLE orders_deploy LOGIN REPLICATION; CREATE ROLE service_owner NOLOGIN; CREATE ROLE service_app LOGIN;
GRANT service_owner TO orders_deploy; GRANT CREATE ON DATABASE service TO orders_deploy;
CREATE ROLE strangler_apply LOGIN REPLICATION;";

const PLAN: &str = "version: 1
plan: split
monolith: { admin: '${ADMIN}', read: '${READ}', apply: '${APPLY}' }
services:
  service: { admin: '${DEPLOY}', apply: '${WRITE}', owner: service_owner, app: service_app, into: sales }
slices:
  one: { service: service, tables: ";

/// `tables` is what the plan says of the slice's tables, in YAML's flow style; `schema` makes them, as their owner.
pub async fn open(tables: &str, schema: &str) -> (Split, Client, Client) {
    let setup = format!("{SHOP} SET ROLE retail_owner; {schema}; RESET ROLE");
    let (mut split, monolith, service) = Split::with_plan(&plan(tables), &setup).await;
    service.batch_execute(SERVICE).await.unwrap();
    let version: String = service.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    let replica = if version.as_str() < "150000" {
        "ALTER ROLE strangler_apply SET session_replication_role = replica"
    } else {
        "GRANT SET ON PARAMETER session_replication_role TO strangler_apply"
    };
    for client in [&monolith, &service] {
        client.batch_execute(replica).await.unwrap();
    }
    lead(&mut split);
    (split, monolith, service)
}

/// The plan of such a split.
pub fn plan(tables: &str) -> String {
    format!("{PLAN}{tables} }}\n")
}

/// Gives the plan its links.
pub fn lead(split: &mut Split) {
    for (variable, role) in [("ADMIN", "shop_admin"), ("READ", "shop_read"), ("APPLY", "strangler_apply")] {
        let link = split.pair.monolith.url_as(role, "", Pair::MONOLITH);
        split.lead(variable, &link);
    }
    for (variable, role) in [("DEPLOY", "orders_deploy"), ("WRITE", "strangler_apply")] {
        let link = split.pair.service.url_as(role, "", Pair::SERVICE);
        split.lead(variable, &link);
    }
}
